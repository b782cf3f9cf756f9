"""The stages of a plan that are stored, and whether their results count.

A stored result counts when everything that its stage needs is stored and is what it was made from.
Where an input runs again, it is held until that input is there: it counts if the input came out the
same, and is made again if not. Results that `force` names never count, but those that another
driver has stored since.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from raysweep.stages.stage import Outcome, Stage
from raysweep.store import Manifest

ManifestsOf = Callable[[Sequence[str]], Mapping[str, Manifest]]


class StoredStages:
    """The stored stages of a plan that count, and those that are held.

    Attributes:
        keys: stored stages that count, or were not looked at yet.
        held: stored stages that wait for inputs → the content that each input had.
        forced: stored stages that are done again because they were named.
        replaced: stored stages that are done again because an input has changed.
    """

    def __init__(
        self,
        stages: Mapping[str, Stage],
        keys: set[str],
        manifests_of: ManifestsOf,
        force: Callable[[Stage], bool],
    ) -> None:
        self._stages = stages
        self._manifests_of = manifests_of
        self._force = force
        self._contents: dict[str, str] = {}
        self._before: dict[str, _Making] = {}
        self.keys = keys
        self.held: dict[str, dict[str, str]] = {}
        self.forced: set[str] = set()
        self.replaced: set[str] = set()

    def look(self, keys: Collection[str]) -> tuple[dict[str, Outcome], list[str]]:
        """Look at stages that are new in the plan.

        Returns:
            The outcomes of the stages that count, and the keys of those that are damaged.
        """
        listed = [key for key in keys if key in self.keys]
        whole = self._manifests_of(listed)
        damaged = [key for key in listed if key not in whole]
        self.keys.difference_update(damaged)
        for key in inputs_first(keys, self._stages):
            if key in whole:
                self._enter(key, whole[key])
        return {key: whole[key].outcome for key in listed if key in self.keys}, damaged

    def _enter(self, key: str, manifest: Manifest) -> None:
        stage, read = self._stages[key], manifest.read
        self._contents[key] = manifest.content
        if self._force(stage):
            self.forced.add(key)
            self.keys.discard(key)
            self._before[key] = _making(manifest)
            return
        # A manifest that does not say what its stage was made from is believed.
        if any(
            need not in self.keys or read.get(need, "") not in ("", self._content(need))
            for need in stage.needs
        ):
            self.held[key] = {
                need: read.get(need) or self._contents.get(need, "") for need in stage.needs
            }
            self.keys.discard(key)
            self._before[key] = _making(manifest)

    def _content(self, key: str) -> str:
        """Return the content of a stored stage; empty if it is gone."""
        if key not in self._contents:
            self._look_up([key])
        return self._contents.get(key, "")

    def outcomes(self, key: str) -> dict[str, Outcome]:
        """Return the outcome of a stage that is stored by now, by key; nothing if it is damaged."""
        return {k: one.outcome for k, one in self._manifests_of([key]).items()}

    def settled(self, key: str) -> bool:
        """Return whether a held result counts, now that all inputs of its stage are stored."""
        before = self.held.pop(key, None)
        if before is None:
            return False
        if all(content in ("", self._content(need)) for need, content in before.items()):
            return True
        self.replaced.add(key)
        return False

    def counting(self, found: Mapping[str, Manifest]) -> set[str]:
        """Return the stages of which another driver has stored a result that counts, meanwhile.

        It counts if it was made from what its inputs are now, and is not the result that is to be
        replaced.

        Args:
            found: the manifests of stages that are stored by now.
        """
        fresh = {k: m for k, m in found.items() if self._before.get(k) != _making(m)}
        self._look_up({n for key in fresh for n in self._stages[key].needs} - self._contents.keys())
        # An input may have been replaced since it was looked at.
        self._look_up({need for key, one in fresh.items() for need in self._differing(key, one)})
        counting = {key for key, one in fresh.items() if not self._differing(key, one)}
        self._contents |= {key: fresh[key].content for key in counting}
        return counting

    def _differing(self, key: str, manifest: Manifest) -> list[str]:
        """Return the inputs of a stage that are not what its result was made from."""
        read, known = manifest.read, self._contents
        needs = self._stages[key].needs
        return [need for need in needs if read.get(need, "") not in ("", known.get(need, ""))]

    def _look_up(self, keys: Collection[str]) -> None:
        self._contents |= {k: one.content for k, one in self._manifests_of(list(keys)).items()}

    def add(self, key: str, *, ran: bool) -> None:
        """Take in that the result of a stage counts, and whether it was made by this run."""
        self.keys.add(key)
        if ran:
            self._contents.pop(key, None)


_Making = tuple[str, str]


def _making(manifest: Manifest) -> _Making:
    """Return the run and the time in which a result was made, which no other making has."""
    return str(manifest.info.get("run")), str(manifest.info.get("finished_at"))


def inputs_first(keys: Collection[str], stages: Mapping[str, Stage]) -> list[str]:
    """Return keys in an order in which each stage follows those of them that it needs."""
    left, ordered = set(keys), list[str]()
    stack = list(keys)
    while stack:
        key = stack[-1]
        needs = [need for need in stages[key].needs if need in left] if key in left else []
        if needs:
            stack += needs
            continue
        stack.pop()
        if key in left:
            left.discard(key)
            ordered.append(key)
    return ordered
