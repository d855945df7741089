"""What a test may change about the cluster while it runs: images, node, service accounts, admission."""

from pathlib import Path

import msgspec

from k8s_builder_lab.embedded import images
from k8s_builder_lab.embedded.images import Image, Images


class Environment(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """The surroundings of the pods, as they are now.

    node_labels: of the only node, for node selectors and required node affinity.
    node_taints: keys `key=value:Effect` that a pod must tolerate.
    node_cordoned: whether `kubectl cordon` has closed it for new pods.
    node_cpu: how many cores the pods on the node may request together.
    node_clock: by how many seconds the node's clock is ahead of the API server's (behind: negative). All that the
      kubelet writes has its time: startedAt, finishedAt, conditions, its events, and the timestamps of logs.
    service_accounts: those that exist, in every namespace.
    pod_quota: how many unfinished pods a namespace may hold; None: any number.
    image_pull_secrets: of every service account.
    api_clock: by how many seconds the API server's clock, as its Date header tells it, is ahead of this machine's.
    refuse_pods: words with which admission refuses every pod, e.g. `violates PodSecurity "restricted:latest": ...`.
    extra_images: set at run time; they come before those of the table or file given at the start.
    """

    node_labels: dict[str, str] = msgspec.field(default_factory=dict)
    node_taints: list[str] = msgspec.field(default_factory=list)
    node_cordoned: bool = False
    node_cpu: float = 32
    node_clock: float = 0
    service_accounts: list[str] = msgspec.field(default_factory=lambda: ["default"])
    pod_quota: int | None = None
    image_pull_secrets: list[str] = msgspec.field(default_factory=list)
    api_clock: float = 0
    refuse_pods: str = ""
    extra_images: dict[str, Image] = msgspec.field(default_factory=dict)

    def pull(self, source: Images | Path, reference: str) -> Image:
        """Return the image that `reference` means.

        :raises PullError: there is no such image
        """
        try:
            table = images.load(source)
        except (OSError, ValueError) as error:
            raise images.PullError(f'failed to pull image "{reference}": {error}') from None
        return images.pull({**table, **self.extra_images}, reference)
