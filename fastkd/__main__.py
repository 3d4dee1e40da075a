"`python -m fastkd`: the same as the command `fastkd`"
from fastkd.cli.main import main

if __name__ == '__main__': raise SystemExit(main())
