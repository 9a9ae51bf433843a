"""Snowflake Arctic (2024), written for transformers 5, which has none of its own."""
