"""Environments of their own for the peers, below ``.venv-bench``; ``make clean`` removes them."""

import subprocess
import sys
import venv

from .peers import Peer


def ready(peer: Peer) -> str | None:
    """Make the peer's environment, unless it is there; why it cannot be had, or ``None``."""
    if peer.is_ours:
        return None
    pin = f"{peer.distribution}=={peer.version}"
    stamp = peer.home / "installed"
    wanted = f"{pin}, Python {sys.version}"
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return None
    venv.create(peer.home, clear=True, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(peer.python), "--disable-pip-version-check"]
    done = subprocess.run([*pip, "install", "--quiet", pin], capture_output=True, text=True, check=False)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        return f"cannot be installed: {reasons[-1] if reasons else f'pip ended with {done.returncode}'}"
    stamp.write_text(wanted, "utf-8")
    return None
