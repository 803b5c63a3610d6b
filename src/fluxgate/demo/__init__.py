"""The main job on real HTTP: circuits that open, probe and recover, and say why."""
