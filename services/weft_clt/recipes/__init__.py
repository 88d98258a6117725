"""
Named runs: `demo`, and settings that others published, by name.

Nothing here imports torch, so that a client can plan with it.
"""

from weft_clt.recipes.anthropic import ANTHROPIC
from weft_clt.recipes.bytedance import BYTEDANCE
from weft_clt.recipes.clt_forge import CLT_FORGE_GPT2, CLT_FORGE_LLAMA
from weft_clt.recipes.demo import demo
from weft_clt.recipes.eleutherai import ELEUTHERAI
from weft_clt.recipes.recipe import Recipe, RunSize
from weft_common.errors import InvalidArgumentError

__all__ = ["RECIPES", "Recipe", "RunSize", "demo", "find_recipe"]

RECIPES = {recipe.name: recipe for recipe in (ANTHROPIC, BYTEDANCE, CLT_FORGE_GPT2, CLT_FORGE_LLAMA, ELEUTHERAI)}
"""By name, in order of names."""


def find_recipe(name: str) -> Recipe:
    """
    Return a recipe.

    Raises:
        InvalidArgumentError: There is none of this name; the message lists them.
    """
    if name not in RECIPES:
        raise InvalidArgumentError(
            f"there is no recipe {name[:80]!r}; give one of {', '.join(RECIPES)}", field="recipe"
        )
    return RECIPES[name]
