"""A value that several tasks read and one changes, and that is gone when nobody owns it any more.

python examples/ownership_workflow.py
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np

from proxystore_core import Store, borrow, get_key, mut_borrow, update
from proxystore_core.ownership import MutableBorrowError
from proxystore_integrations.futures import StoreExecutor


def total(array: Any) -> float:
    """Reads what was borrowed."""
    return float(array.sum())


def double(array: Any) -> None:
    """Changes what was borrowed."""
    array[:] = 2 * array
    update(array)


def main() -> None:
    """Lend an array to tasks."""
    with Store.from_url("shm://", name="owned") as store, StoreExecutor(ProcessPoolExecutor(2)) as executor:
        owned = store.owned_proxy(np.ones(500_000))
        reading = [executor.submit(total, borrow(owned)) for _ in range(3)]
        try:
            mut_borrow(owned)
        except MutableBorrowError as error:
            print(f"refused: {error}")
        print("sums:", [task.result() for task in reading])
        executor.submit(double, mut_borrow(owned)).result()
        print("after the change:", executor.submit(total, borrow(owned)).result())
        key = get_key(owned)
        del owned
        while store.exists(key):
            time.sleep(0.01)
        print("no owner, no object")


if __name__ == "__main__":
    main()
