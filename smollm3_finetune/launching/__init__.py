"""A planned run is handed over to the processes that a launcher starts."""
