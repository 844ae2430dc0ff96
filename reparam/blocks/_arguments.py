"""Constructor arguments as annotated attributes of a class, written once for Python, `help` and type checkers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar
from inspect import Parameter, Signature
from typing import Any, ClassVar, get_args, get_origin

from typing_extensions import Format, dataclass_transform, get_annotations

from ..branches._geometry import FromSpec
from ..errors import OptionError
from ..modules._start import remembering


def argument(*, default: Any = Parameter.empty, kw_only: bool = True) -> Any:
    """Declare an argument that may be positional; a plain annotated attribute is keyword-only."""
    return Parameter(
        "argument", Parameter.KEYWORD_ONLY if kw_only else Parameter.POSITIONAL_OR_KEYWORD, default=default
    )


@dataclass_transform(kw_only_default=True, field_specifiers=(argument,))
class Arguments:
    """A base for classes whose annotated attributes are the arguments of their constructor, as in a dataclass.

    It is not a dataclass, because `nn.Module` must be initialized before an attribute is set, and because the error for
    an unknown argument should name the known ones. As in a dataclass, a subclass adds arguments and may change their
    defaults, and a `ClassVar` is not an argument. A class with its own `__init__` defines its arguments there.
    """

    __signature__: ClassVar[Signature | None]
    _declared: ClassVar[Mapping[str, Parameter]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__init__ is not Arguments.__init__:
            cls.__signature__ = None
            return
        cls._declared = {**cls._declared, **_declared_in(cls)}
        cls.__signature__ = Signature(list(cls.arguments().values()))

    @remembering
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        known = self.arguments()
        if unknown := [name for name in kwargs if name not in known]:
            raise OptionError(
                f"{type(self).__name__} has no option {', '.join(map(repr, unknown))}; it takes {', '.join(known)}"
            )
        try:
            bound = Signature(list(known.values())).bind(*args, **kwargs)
        except TypeError as error:  # Python's message does not name the class
            raise TypeError(f"{type(self).__name__}: {error}") from None
        bound.apply_defaults()
        self._build(**bound.arguments)

    def _build(self, **arguments: Any) -> None:
        """The body of the constructor; gets every argument by name."""
        raise NotImplementedError

    @classmethod
    def arguments(cls) -> dict[str, Parameter]:
        """The arguments of the constructor by name, in order."""
        return dict(sorted(cls._declared.items(), key=lambda item: item[1].kind))


def _declared_in(cls: type[Arguments]) -> dict[str, Parameter]:
    """Take the arguments that a class itself declares off the class, where they would hide a block's attributes."""
    hints = {name: hint for name, hint in _hints(cls).items() if "ClassVar" not in str(hint)}
    values = {name: vars(cls)[name] for name in {**hints, **cls._declared} if name in vars(cls)}
    found = {}
    for name, hint in hints.items():
        value = values.get(name, Parameter.empty)
        parameter = value if isinstance(value, Parameter) else argument(default=value)
        found[name] = parameter.replace(name=name, annotation=_given(hint))
    for name in values.keys() - hints.keys():
        if not hasattr(type(values[name]), "__get__"):  # else it is a method or a property, not a default
            found[name] = cls._declared[name].replace(default=values[name])
    for name in found.keys() & values.keys():
        delattr(cls, name)
    return found


def _hints(cls: type) -> dict[str, Any]:
    try:
        return dict(get_annotations(cls, eval_str=True))
    except Exception:  # an annotation with a name that is imported for type checkers only
        return dict(get_annotations(cls, format=Format.FORWARDREF))


def _given(hint: Any) -> Any:
    """The type of the constructor argument for an attribute of this type."""
    if isinstance(hint, InitVar):
        return hint.type
    return get_args(hint)[0] if get_origin(hint) is FromSpec else hint
