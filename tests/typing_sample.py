"""What type checkers say of this file is what tests/test_typing.py checks; it is not run."""

from typing import TYPE_CHECKING

from proxystore_core import Proxy, Store, borrow, extract

if TYPE_CHECKING:
    from typing import reveal_type


class Model:
    weight: float = 1.0

    def score(self, x: float) -> float:
        return self.weight * x


def use(model: Model) -> float:
    return model.score(2)


store = Store.from_url("memory://")
proxy = store.proxy(Model())
annotated: Proxy[Model] = store.proxy(Model())
numbers = store.proxy([1, 2])
owned = store.owned_proxy(Model())
future = store.future(kind=Model)
plain: Model = extract(annotated)

reveal_type(proxy.score(1.0))  # float
reveal_type(annotated.weight)  # float
reveal_type(borrow(owned).weight)  # float
reveal_type(future.proxy().score(1))  # float
reveal_type(future.result())  # Model
reveal_type(len(numbers))  # int

print(numbers + [3], [3] + numbers, numbers == [1, 2], numbers < [2], -numbers[0], 1 in numbers)
for number in numbers:
    print(number)
use(proxy)  # mypy only
proxy.no_such_thing  # mypy: error
