"""infinity-emb's own command line over the benchmark's model: infinity_server.py v2 --model-id FOLDER ..."""

from bidirectional import attend_in_both_directions
from infinity_emb.cli import cli

if __name__ == "__main__":
    attend_in_both_directions()
    cli()
