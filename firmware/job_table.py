"""A table by job, in which all of one instance are found without looking at those of the others.

Thousands of instances may each have a job, or a failure to tell of, and each step of the
reconciler and each row of `apf ps` asks for those of one.
"""

from collections.abc import Iterator, MutableMapping
from typing import TypeAlias, TypeVar

JobKey: TypeAlias = tuple[str, str, int, str]  # verb, instance, generation, cnm
T = TypeVar("T")


class JobTable(MutableMapping[JobKey, T]):
    """In the order in which the keys came, as a dict has them. Whoever fills it bounds it."""

    def __init__(self) -> None:
        self._entries: dict[JobKey, T] = {}
        self._by_instance: dict[str, dict[JobKey, None]] = {}  # in the same order

    def of(self, instance: str) -> list[JobKey]:
        """All of one instance, the first one first."""
        return list(self._by_instance.get(instance, ()))

    def __getitem__(self, key: JobKey) -> T:
        return self._entries[key]

    def __setitem__(self, key: JobKey, value: T) -> None:
        self._entries[key] = value
        self._by_instance.setdefault(key[1], {})[key] = None

    def __delitem__(self, key: JobKey) -> None:
        del self._entries[key]
        of_instance = self._by_instance[key[1]]
        del of_instance[key]
        if not of_instance:
            del self._by_instance[key[1]]

    def __iter__(self) -> Iterator[JobKey]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
