"""`python -m reparam` is the `reparam` command."""

from .cli import app

if __name__ == "__main__":
    app(prog_name="python -m reparam")
