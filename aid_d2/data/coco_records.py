"""One list of a COCO file, and what is wrong with its records."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from .problems import Problem, problems_at

# Larger ids do not survive JSON and NumPy everywhere.
MAX_ID = 2**53


class Records:
    """One list of the file: those of its records that have all keys, and what is wrong with them.

    Args:
        kind: images, annotations or categories.
        listed: what the file lists.
        required: keys that a record needs.
        file_names: of the images by their id, to tell where an annotation is.
    """

    def __init__(
        self, kind: str, listed: list, required: Sequence[str], file_names: dict | None = None
    ) -> None:
        self.kind = kind
        self.problems: list[Problem] = []
        self._listed = listed
        self._file_names = file_names or {}
        self._changes: dict[int, dict] = defaultdict(dict)
        self._dropped: set[int] = set()

        self.rows = [r for r in listed if type(r) is dict]
        places = [f"{kind}[{i}]" for i, r in enumerate(listed) if type(r) is not dict]
        self.problems += problems_at(f"{kind} that are not objects", places)
        for key in required:
            self.fail(f'without "{key}"', [i for i, r in enumerate(self.rows) if key not in r])
        if self.broken:
            self.rows = [r for r in self.rows if all(key in r for key in required)]

    @property
    def broken(self) -> bool:
        """Whether something cannot be mended."""
        return any(problem.fatal for problem in self.problems)

    def values(self, key: str) -> list:
        """The value of each row, None where it has none."""
        return [r.get(key) for r in self.rows]

    def fail(self, what: str, rows: Iterable[int]) -> None:
        """Note rows that cannot be mended."""
        self._add(what, list(rows), fatal=True)

    def mend(self, what: str, key: str, values: dict[int, object]) -> None:
        """Give rows another value of `key`, and note them."""
        self.set(key, values)
        self._add(what, list(values), fatal=False)

    def drop(self, what: str, rows: Iterable[int]) -> None:
        """Leave rows out, those aside that are left out already."""
        rows = [i for i in rows if i not in self._dropped]
        self._dropped.update(rows)
        self._add(f"{what}, left out", rows, fatal=False)
        if rows and len(self._dropped) == len(self.rows):
            self.fail("in all, of which none is left", range(len(self.rows)))

    def set(self, key: str, values: dict[int, object]) -> None:
        """Give rows another value of `key` without a note."""
        for i, value in values.items():
            self._changes[i][key] = value

    def mended(self) -> list:
        """The list with all changes; the file's own list where there are none."""
        if not self._changes and not self._dropped:
            return self._listed
        return [
            {**row, **self._changes[i]} if i in self._changes else row
            for i, row in enumerate(self.rows)
            if i not in self._dropped
        ]

    def _add(self, what: str, rows: list[int], fatal: bool) -> None:
        if rows:
            # There may be a million.
            places = tuple(self._place(self.rows[i], i) for i in rows[:3])
            self.problems.append(Problem(f"{self.kind} {what}", len(rows), places, fatal))

    def _place(self, row: dict, i: int) -> str:
        place = f"id {row['id']!r:.40}" if "id" in row else f"{self.kind}[{i}]"
        image = row.get("image_id")
        file_name = row.get("file_name") or self._file_names.get(canonical(image))
        return f"{place} ({file_name!s:.80})" if file_name else place


def canonical(value: object) -> int | str | None:
    """An integer for what means one (7, 7.0, "007"), another string as it is, else None."""
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is str and len(value) < 16 and value.isdecimal():
        value = int(value)
    if type(value) is int:
        return value if abs(value) < MAX_ID else str(value)
    return value if type(value) is str else None
