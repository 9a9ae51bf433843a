"""Names that have a longest length."""

from hashlib import sha256


def shortened(name: str, most: int) -> str:
    """A name of at most so many bytes; one that is cut ends in its hash, and so differs from others that are."""
    if len(name.encode()) <= most:
        return name
    end = short_digest(name)
    return f"{name.encode()[: most - len(end) - 1].decode(errors='ignore')}-{end}"


def short_digest(text: str) -> str:
    """The first eight digits of a text's sha256."""
    return sha256(text.encode()).hexdigest()[:8]
