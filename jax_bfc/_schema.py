"""Checks JSON against a schema, as far as ours use JSON Schema."""

import itertools
import math
import re
from typing import Any, Final

__all__ = ["SchemaError", "check"]

_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


# So many items of an array are checked at once.
_BLOCK: Final = 1024


class SchemaError(ValueError):
    """A value that the schema does not allow; the text says where."""


def _show(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def check(value: Any, schema: dict[str, Any], where: str = "$") -> None:
    """Raises SchemaError at the first place that is not as the schema has it."""
    # Python's True is 1.
    if "const" in schema and (
        value != schema["const"]
        or isinstance(value, bool) != isinstance(schema["const"], bool)
    ):
        raise SchemaError(f"{where} is {_show(value)}; valid: {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        valid = ", ".join(map(repr, schema["enum"]))
        raise SchemaError(f"{where} is {_show(value)}; valid: {valid}")
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        types = tuple(t for name in names for t in _TYPES[name])
        # Python's bool is an int.
        wrong_bool = isinstance(value, bool) and bool not in types
        # JSON knows no other integers than numbers without a fraction.
        whole = "integer" in names and isinstance(value, float) and value.is_integer()
        if (not isinstance(value, types) or wrong_bool) and not whole:
            raise SchemaError(f"{where} is {_show(value)}; valid: {' or '.join(names)}")
    if "pattern" in schema and re.search(schema["pattern"], value) is None:
        raise SchemaError(f"{where} is {_show(value)}; valid: {schema['pattern']}")
    if "minimum" in schema and not value >= schema["minimum"]:  # NaN too
        raise SchemaError(
            f"{where} is {_show(value)}; valid: at least {schema['minimum']}"
        )
    if "maximum" in schema and not value <= schema["maximum"]:
        raise SchemaError(
            f"{where} is {_show(value)}; valid: at most {schema['maximum']}"
        )
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                raise SchemaError(f"{where} has no {name!r}")
        for name, item in value.items():
            if name in properties:
                check(item, properties[name], f"{where}.{name}")
            elif not schema.get("additionalProperties", True):
                raise SchemaError(
                    f"{where} has {_show(name)}; valid: {', '.join(properties)}"
                )
    if isinstance(value, list) and "items" in schema:
        for start in range(0, len(value), _BLOCK):
            block = value[start : start + _BLOCK]
            if not _are_valid(block, schema["items"]):
                for i, item in enumerate(block, start):
                    check(item, schema["items"], f"{where}[{i}]")


def _are_valid(values: list[Any], schema: dict[str, Any]) -> bool:
    """Whether all are; several times faster than checking each.

    Where it cannot tell, it is False, and `check` has to.
    """
    types = set(map(type, values))
    if "enum" in schema:
        return types <= {str} and set(values) <= set(schema["enum"])
    names = schema.get("type", [])
    names = names if isinstance(names, list) else [names]
    allowed = {t for name in names for t in _TYPES.get(name, ())}
    if not types <= allowed or "const" in schema or "pattern" in schema:
        return False
    if "minimum" in schema or "maximum" in schema:
        low = schema.get("minimum", -math.inf)
        high = schema.get("maximum", math.inf)
        return types <= {int} and (
            not values or (low <= min(values) and max(values) <= high)
        )
    if types == {dict}:
        properties = schema.get("properties", {})
        required = set(schema.get("required", ()))
        return all(
            required <= set(keys) <= set(properties) for keys in set(map(tuple, values))
        ) and all(
            _are_valid([value[name] for value in values if name in value], of_name)
            for name, of_name in properties.items()
        )
    if types == {list}:
        items = list(itertools.chain.from_iterable(values))
        return _are_valid(items, schema.get("items", {}))
    return types.isdisjoint({dict, list})
