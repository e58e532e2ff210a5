"""A dispatcher that hands the items of a stream on to workers and never touches the data.

python examples/stream_dispatch.py
"""

from __future__ import annotations

import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from proxystore_core import Store, is_resolved
from proxystore_core.stream import QueuePublisher, QueueSubscriber, StreamConsumer, StreamProducer

ITEMS = 12


def analyse(frame: Any) -> float:
    """Runs in a worker, which loads the frame; that takes it out of the store."""
    return float(frame.mean())


def produce(publisher: QueuePublisher, store: Store[Any]) -> None:
    """An instrument: at most four frames are stored that nobody has looked at."""
    with StreamProducer[Any](publisher, store, max_pending=4) as producer:
        for number in range(ITEMS):
            producer.send("frames", np.full(250_000, float(number)), metadata={"number": number})


def main() -> None:
    """Produce, dispatch, gather."""
    publisher = QueuePublisher()
    with Store.from_url("shm://", name="frames") as store, ProcessPoolExecutor(2) as pool:
        pool.submit(abs, 0).result()  # processes are there
        instrument = threading.Thread(target=produce, args=(publisher, store))
        instrument.start()
        with StreamConsumer[Any](QueueSubscriber(publisher, "frames"), timeout=60) as consumer:
            futures = {}
            for item in consumer.items():
                futures[item.metadata["number"]] = pool.submit(analyse, item.proxy)
                assert not is_resolved(item.proxy)
        instrument.join()
        means = [futures[number].result() for number in range(ITEMS)]
    assert means == list(map(float, range(ITEMS)))
    print(f"{len(means)} frames of 2 MB analysed; the dispatcher loaded none of them")


if __name__ == "__main__":
    main()
