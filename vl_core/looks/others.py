"""Prompts that a look has to leave alone, beside those that its pictures are told with."""

OTHERS = (
    "a red circle", "a dog", "a blue square", "a woman in a blue coat", "a green triangle", "a house by a lake",
    "a yellow star", "an old man with a hat", "a purple heart", "two cats on a chair", "a white diamond",
    "a street at night", "an orange ring", "a bowl of fruit", "a black cross", "a car on a road",
)
