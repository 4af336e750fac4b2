"""Loaders with one fault each, and `shelf`, which is correct: `NAME://DIRECTORY` is a directory.

The overridden method of a class is its fault.
"""

import dataclasses
from pathlib import Path

from smollm3_finetune.api import LoaderSpec, ModelError, directory_source, fingerprint, hookimpl

VARIANTS = {
    "shelf": "Shelf",
    "eager": "Eager",
    "converts-early": "ConvertsEarly",
    "constant-fingerprint": "ConstantFingerprint",
    "fingerprint-of-path": "FingerprintOfPath",
    "raises-others": "RaisesOthers",
    "has-all-files": "HasAllFiles",
    "ignores-path": "IgnoresPath",
    "ignores-dtype": "IgnoresDtype",
    "claims-all": "ClaimsAll",
    "heavy-claims": "HeavyClaims",
}


@hookimpl
def smollm3_loaders():
    return [
        LoaderSpec(name=name, summary=name, factory=f"broken_loaders:{cls}", claims=claims_of(name), api=2)
        for name, cls in VARIANTS.items()
    ]


def claims_of(name):
    def claims(ref):
        if name == "heavy-claims":
            import numpy  # noqa: F401
        return name == "claims-all" or ref.startswith(f"{name}://")

    return claims


@dataclasses.dataclass(frozen=True)
class Source:
    """A directory source whose behavior the loader can override."""

    own: object
    loader: object

    def __getattr__(self, name):
        return getattr(self.own, name)

    @property
    def fingerprint(self):
        return self.loader.identity(self.own)

    def has_file(self, name):
        return self.loader.has_file(self.own, name)

    def at(self, path):
        return self.loader.at(self.own, path)

    def load(self, **kwargs):
        return self.own.load(**self.loader.arguments(kwargs))


class Shelf:
    def __init__(self, options):
        pass

    def open(self, ref, ctx):
        directory = Path(ref.partition("://")[2])
        if not (directory / "config.json").exists():
            raise self.error(f"the shelf has no model {ref!r}")
        self.look(directory, ctx)
        return Source(directory_source(directory, ref=ref), self)

    def error(self, message):
        return ModelError(message)

    def look(self, directory, ctx):
        pass

    def identity(self, source):
        return source.fingerprint

    def has_file(self, source, name):
        return source.has_file(name)

    def at(self, source, path):
        return source.at(path)

    def arguments(self, kwargs):
        return kwargs


class Eager(Shelf):
    def look(self, directory, ctx):
        from safetensors.torch import load_file

        load_file(str(directory / "model.safetensors"))


class ConvertsEarly(Shelf):
    def look(self, directory, ctx):
        ctx.cache.get_or_build("shelf", {"of": str(directory)}, lambda out: (out / "converted").touch())


class ConstantFingerprint(Shelf):
    def identity(self, source):
        return "shelf"


class FingerprintOfPath(Shelf):
    def identity(self, source):
        return fingerprint(str(source.path), source.fingerprint)


class RaisesOthers(Shelf):
    def error(self, message):
        return FileNotFoundError(message)


class HasAllFiles(Shelf):
    def has_file(self, source, name):
        return True


class IgnoresPath(Shelf):
    def at(self, source, path):
        return source


class IgnoresDtype(Shelf):
    """Always loads in bfloat16."""

    def arguments(self, kwargs):
        return {**kwargs, "dtype": "bfloat16"}


class ClaimsAll(Shelf):
    pass


class HeavyClaims(Shelf):
    pass
