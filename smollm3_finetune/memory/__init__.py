"""The memory that a run needs, predicted from shapes: no weights are read and no row is tokenized."""
