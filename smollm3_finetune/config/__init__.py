"""A run's configuration: its keys (`schema`), YAML (`yaml12`), layers (`load`) and options (`options`)."""
