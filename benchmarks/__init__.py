"""Fluxgate beside its peers, and each feature beside what it needs: ``python -m benchmarks``, or ``make bench``.

How it is measured:

- Each library runs in a process and an environment of its own (see `peers`), and one conductor asks all of them in turn
  for one short sample, for many rounds, so that noise hits all alike (see `conductor`).
- A sample times the bare call, the protected call and the empty loop in the same process, each as the best of some
  stretches (25 ms of the protected call, 5 ms of the bare one); the loop is subtracted, and the ratio to the bare call
  is that of the sample. What is reported is the median of the samples (see `workloads`).
- A stretch is longer than what Fluxgate puts off and grows with the calls (those of a large window or one by time are
  recorded every 2 ms), so each sample pays for it; it is longer still where circuits take turns, so that it has all
  that each of them puts off.
- Garbage is collected before a sample and what is alive is frozen; the collector stays on, as in a program.

The budgets are in `budgets`, the peers in `peers`, the features in `features`, each once.
"""
