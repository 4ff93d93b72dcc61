"""``python -m gan_t2i`` is the `gan-t2i` command."""

from gan_t2i.cli.main import main

if __name__ == "__main__":
    main()
