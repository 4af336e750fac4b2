"""Rows: reading them (`reading`), as conversations (`formatting`), split (`split`), as tokens with a mask (`chat`)."""
