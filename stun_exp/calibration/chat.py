"""Conversations as a chat model reads them."""

from collections.abc import Sequence
from typing import Any

from stun_exp.calibration.text import checked_text


def conversation_ids(messages: Sequence[Any], where: str, tokenizer: Any, as_prompt: bool) -> list[int]:
    """The tokens of a conversation in the tokenizer's chat template.

    Args:
        messages: What each side says, an object with `role` and `content` each.
        where: What an error calls the row that they are from.
        tokenizer: The model's.
        as_prompt: Leaves out the answer that it ends with, if it does, and opens the next one.

    Raises:
        ValueError: The tokenizer has no template, or its template cannot take the conversation.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"{where}: has chat `messages`, and the model's tokenizer has no chat template; give its "
            "chat_template.jinja beside the weights, or rows with `text`"
        )
    turns = [_turn(message, where) for message in messages]
    if as_prompt:
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
    if not turns:
        return []
    try:
        made = tokenizer.apply_chat_template(turns, add_generation_prompt=as_prompt, return_dict=True)
    except Exception as error:  # a template is a program, and raises what its author liked
        raise ValueError(
            f"{where}: the chat template does not take these `messages` ({' '.join(str(error).split())[:200]})"
        ) from error
    return list(made["input_ids"])


def _turn(message: Any, where: str) -> dict[str, Any]:
    """One message, without the fields that a table holds for other rows."""
    if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise ValueError(f"{where}: each of `messages` needs a `role` and a `content` that are text")
    checked_text(message["content"], where)
    return {key: value for key, value in message.items() if value is not None}
