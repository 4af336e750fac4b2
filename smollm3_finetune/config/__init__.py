"""The run's configuration: its shape (`schema`), reading YAML (`yaml12`) and putting its layers together (`load`)."""
