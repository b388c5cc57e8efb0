"""What configuration dataclasses share.

Settings are plain frozen dataclasses beside the code that they set; pydantic checks them when they come from a recipe.
Light to import: recipes are checked with it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)
"""For `__pydantic_config__` of a settings dataclass: unknown keys, numbers that are none, and values of another type
(the text "3", true for 1) are errors."""

LARGEST = 2**53
"""Whole numbers beyond this are not exact in JSON and float64, and no setting needs them."""

Count = Annotated[int, Field(ge=1, le=LARGEST)]
Index = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Clip = Annotated[float, Field(ge=0, le=1)]
"""How far below 1 a ratio may fall: not below 0."""
Ddof = Annotated[int, Field(ge=0, le=1)]
"""Degrees of freedom taken off a standard deviation: 2 would leave nothing of a group of 2."""
