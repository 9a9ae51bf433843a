"""Text in Markdown that stays text: names and settings come from anywhere, and make no markup, link or image."""

import re

# One pass over the text, so that what stands for one character is not taken for others. Each branch is a character
# that would be read as markup where it stands; words with underscores, and "<0.001", are left as they are.
_SPECIAL = re.compile(
    r"""
    (?P<backslash>[*`~$|\#\[\]] | (?<!\w)_+ | _+(?!\w))
    | \\ | <(?![\d ]) | &(?=\#?\w+;)
    | (?<=javascript): | (?<=vbscript): | (?<=data):(?=\s*text) | :(?=//)  # a scheme, of a script or of a link
    | (?<=www)\. | (?<=mailto): | (?<=[\w.+-])@(?=[\w-]+\.)             # what GitHub makes a link of unasked
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BLOCK = re.compile(r"(?P<sign>[>=]|[+-](?=[\s-]|$))|(?P<number>\d+)(?P<dot>[.)](?=\s|$))")
"""What begins a quotation, a list or a line across the page at the beginning of a paragraph."""
_PLAIN_CODE = re.compile(r"(?!.*(javascript|vbscript|data)\s*:)[^`<|\n\r]*", re.DOTALL | re.IGNORECASE)


def text(words: str) -> str:
    """Words on one line, for a heading, a cell, a caption."""
    line = " ".join(part for part in re.split(r"[\s\x00-\x1f\x7f\x85\u2028\u2029]+", words) if part)
    return _SPECIAL.sub(_escaped, line)


def paragraphs(words: str) -> str:
    """Words with an empty line between their paragraphs."""
    escaped = [text(part) for part in words.split("\n\n")]
    return "\n\n".join(_BLOCK.sub(_no_block, part, count=1) if _BLOCK.match(part) else part for part in escaped if part)


def code(words: str) -> str:
    """Words as code in a line, or as text if they could not be read as what they are there."""
    return f"`{words}`" if words.strip() == words and _PLAIN_CODE.fullmatch(words) else text(words)


def code_block(words: str, language: str) -> str:
    """Words as code in lines of their own, between fences that are longer than any in them; or as text as above."""
    if not _PLAIN_CODE.fullmatch(re.sub(r"[`|\n]", "", words)):
        return paragraphs(words)
    longest = max((len(run) for run in re.findall("`+", words)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{words}\n{fence}"


def _escaped(found: re.Match[str]) -> str:
    letter = found[0]
    if found["backslash"]:
        return "".join("\\" + one for one in letter)
    return {"<": "&lt;", "&": "&amp;"}.get(letter, f"&#{ord(letter)};")


def _no_block(found: re.Match[str]) -> str:
    return f"\\{found['sign']}" if found["sign"] else f"{found['number']}\\{found['dot']}"
