"""The entry point of `clipseq` and `python -m clipseq`."""


def main() -> None:
    """Run the command line."""
    from clipseq.cli.app import run

    run()


if __name__ == "__main__":
    main()
