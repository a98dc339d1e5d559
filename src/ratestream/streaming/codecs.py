"""Values to bytes and back: one codec for each key type and value type a topic can declare."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from ratestream.streaming.errors import DecodeError

T = TypeVar("T")
_NOT_AS_DECLARED = (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError)


class Codec(Protocol[T]):
    """Turns values of one type into bytes and back. `decode` raises `DecodeError` and nothing
    else, whatever the bytes are; `decode_all` does, when any of them is wrong."""

    def encode(self, value: T) -> bytes | None: ...

    def decode(self, data: bytes | None) -> T: ...

    def decode_all(self, data: Iterable[bytes | None]) -> list[T]: ...


class RawCodec:
    """Bytes as they are; None is None."""

    def encode(self, value: bytes | None) -> bytes | None:
        return value

    def decode(self, data: bytes | None) -> bytes | None:
        return data

    def decode_all(self, data: Iterable[bytes | None]) -> list[bytes | None]:
        return list(data)


class TextCodec:
    """UTF-8 text; None is None."""

    def encode(self, value: str | None) -> bytes | None:
        return None if value is None else value.encode()

    def decode(self, data: bytes | None) -> str | None:
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"not UTF-8: {error.reason} at byte {error.start}") from None

    def decode_all(self, data: Iterable[bytes | None]) -> list[str | None]:
        raw = list(data)
        try:
            return list(map(bytes.decode, raw))  # type: ignore[arg-type]  # None: a TypeError
        except (UnicodeDecodeError, TypeError):
            return [self.decode(each) for each in raw]


class JsonCodec(Generic[T]):
    """JSON through msgspec: decimals are strings, times RFC 3339, unknown fields ignored."""

    def __init__(self, value_type: type[T]) -> None:
        self.encode = msgspec.json.Encoder(decimal_format="string").encode
        self._decode = msgspec.json.Decoder(value_type).decode

    def decode(self, data: bytes | None) -> T:
        if data is None:
            raise DecodeError("the record has no value")
        try:
            return self._decode(data)
        except _NOT_AS_DECLARED as error:
            raise DecodeError(f"not as declared: {error}") from None

    def decode_all(self, data: Iterable[bytes | None]) -> list[T]:
        try:
            return list(map(self._decode, data))  # type: ignore[arg-type]  # None: a TypeError
        except (*_NOT_AS_DECLARED, TypeError) as error:
            raise DecodeError(f"not all as declared: {error}") from None


def codec_for(value_type: Any) -> Codec[Any]:
    """`bytes` stay as they are, `str` is UTF-8 text, anything else is JSON of that type."""
    if value_type is bytes:
        return RawCodec()
    if value_type is str:
        return TextCodec()
    return JsonCodec(value_type)
