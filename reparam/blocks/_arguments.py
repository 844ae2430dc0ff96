"""The arguments of a constructor as annotated attributes of its class: once, for Python, `help` and type checkers."""

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
    """An argument that may be given by its position; a plain annotated attribute is one that is given by its name."""
    return Parameter(
        "argument", Parameter.KEYWORD_ONLY if kw_only else Parameter.POSITIONAL_OR_KEYWORD, default=default
    )


@dataclass_transform(kw_only_default=True, field_specifiers=(argument,))
class Arguments:
    """A base of classes whose annotated attributes are the arguments of their constructor, as those of a dataclass are.

    It is no dataclass, since `nn.Module` has to be built before an attribute is set, and since an unknown argument
    should name the known ones. As there, a subclass adds to the arguments, and may give one of them another default; a
    `ClassVar` is none. A class with an `__init__` of its own says itself what it takes.
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
        except TypeError as error:  # Python's own words, which do not say of what
            raise TypeError(f"{type(self).__name__}: {error}") from None
        bound.apply_defaults()
        self._build(**bound.arguments)

    def _build(self, **arguments: Any) -> None:
        """The constructor, given every argument by its name."""
        raise NotImplementedError

    @classmethod
    def arguments(cls) -> dict[str, Parameter]:
        """What the constructor takes, by name, in the order in which it takes it."""
        return dict(sorted(cls._declared.items(), key=lambda item: item[1].kind))


def _declared_in(cls: type[Arguments]) -> dict[str, Parameter]:
    """The arguments that a class declares itself, taken off it, so that what a block has by that name is seen."""
    hints = {name: hint for name, hint in _hints(cls).items() if "ClassVar" not in str(hint)}
    values = {name: vars(cls)[name] for name in {**hints, **cls._declared} if name in vars(cls)}
    found = {}
    for name, hint in hints.items():
        value = values.get(name, Parameter.empty)
        parameter = value if isinstance(value, Parameter) else argument(default=value)
        found[name] = parameter.replace(name=name, annotation=_given(hint))
    for name in values.keys() - hints.keys():
        if not hasattr(type(values[name]), "__get__"):  # else a method or a property, and no default
            found[name] = cls._declared[name].replace(default=values[name])
    for name in found.keys() & values.keys():
        delattr(cls, name)
    return found


def _hints(cls: type) -> dict[str, Any]:
    try:
        return dict(get_annotations(cls, eval_str=True))
    except Exception:  # what only a type checker can read: a name that is imported for it alone
        return dict(get_annotations(cls, format=Format.FORWARDREF))


def _given(hint: Any) -> Any:
    """The type of what is given for an attribute of this type."""
    if isinstance(hint, InitVar):
        return hint.type
    return get_args(hint)[0] if get_origin(hint) is FromSpec else hint
