"""python server.py --model models/echo"""

from inferless_shim.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
