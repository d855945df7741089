"""How long the cluster takes for each of its steps: the times measured on a real one, times one factor."""

import anyio
import msgspec


class Timings(msgspec.Struct, frozen=True):
    """The measured durations in seconds, and the `factor` by which they are scaled (1.0: as a real cluster).

    What a user sets (grace, TTL, timeouts) and whole-second rules of the API are never scaled.
    """

    factor: float = 0.1

    job_accepted: float = 0.012
    scheduling: float = 0.02
    kubelet_notices: float = 0.04
    sandbox: float = 0.45
    container_create: float = 0.02
    container_start: float = 0.1
    end_noticed: float = 0.4
    pod_finishes: float = 1.1
    log_ends: float = 0.5
    job_sync: float = 1.0
    pod_removed: float = 0.4
    garbage: float = 0.02
    ownerless_noticed: float = 0.15
    mount_retry: float = 0.5
    mount_retry_cap: float = 122.0
    create_retry: float = 1.0
    create_retry_cap: float = 60.0
    pull_noticed: float = 0.64
    pull_retry: float = 10.8
    pull_retry_cap: float = 300.0
    pull_told: float = 14.0
    config_noticed: float = 0.4
    stop_told: float = 0.03

    async def pause(self, duration: float) -> None:
        """Sleep for one of the durations above."""
        await anyio.sleep(duration * self.factor)

    async def retry(self, duration: float) -> None:
        """Sleep before another try; whatever the factor, there is a pause."""
        await anyio.sleep(max(duration * self.factor, 0.02))
