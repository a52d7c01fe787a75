"""The stream and the buckets, as `enabler fleet setup` makes them."""

from __future__ import annotations

import ssl

import nats
from nats.js.api import DiscardPolicy

from tests.fleet.cluster import OPERATOR, Cluster


async def set_up(cluster: Cluster) -> None:
    client = await nats.connect(
        cluster.urls,
        tls=ssl.create_default_context(cafile=cluster.ca),
        nkeys_seed_str=cluster.credentials(OPERATOR).read_text().strip(),
    )
    jetstream = client.jetstream()
    await jetstream.add_stream(name="ENABLER", subjects=["enabler.*.*.*"], num_replicas=3)
    for bucket in ("enabler-vms", "enabler-hosts"):
        await jetstream.add_stream(
            name=f"KV_{bucket}",
            subjects=[f"$KV.{bucket}.>"],
            num_replicas=3,
            max_msgs_per_subject=1,
            discard=DiscardPolicy.NEW,
        )
    await client.close()
