"""What /metrics says, read as Prometheus reads it."""

from collections.abc import Iterator

from prometheus_client.parser import text_string_to_metric_families


class Exposition:
    """One answer of /metrics: every series by its name and labels."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __getitem__(self, name: str) -> float:
        """Return the value of a series without labels, by its name without the prefix."""
        return self.value(name)

    def value(self, name: str, **labels: str) -> float:
        """Return the value of one series, by its name without the prefix; 0 where there is none."""
        return self._samples.get((f"k8s_builderd_{name}", frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all series of a name that have these labels."""
        return sum(value for found, value in self._of(name) if labels.items() <= found.items())

    def counted(self, name: str) -> dict[tuple[str, ...], float]:
        """Return what is not 0 of a name's series, by the values of its labels in alphabetical order."""
        return {tuple(found[key] for key in sorted(found)): value for found, value in self._of(name) if value}

    def _of(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        for (found, labels), value in self._samples.items():
            if found == f"k8s_builderd_{name}":
                yield dict(labels), value
