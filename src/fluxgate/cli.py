def main() -> int:
    raise SystemExit("not here yet")
