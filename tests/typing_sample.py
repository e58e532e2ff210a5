"""What type checkers say of this file is what tests/test_typing.py checks; it is not run."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from proxystore_core import Proxy, Store, borrow, extract, is_resolved, mut_borrow, update
from proxystore_core.proxy import ProxyOr
from proxystore_core.stream import QueuePublisher, QueueSubscriber, StreamConsumer

if TYPE_CHECKING:
    from typing import reveal_type


class Model:
    weight: float = 1.0

    def score(self, x: float) -> float:
        return self.weight * x


def use(model: Model) -> float:
    return model.score(2)


def count(number: int) -> None: ...


def total(numbers: list[int], data: bytearray) -> float:
    return sum(numbers) + len(data)


def annotated(proxy: Proxy[Model], either: ProxyOr[Model]) -> Model:
    use(proxy)
    use(extract(proxy))
    count(len("" if is_resolved(proxy) else "later"))
    if not isinstance(either, Proxy):
        use(either)
    return proxy


def passed(each: Callable[[Model], float], model: Model) -> float:
    return each(model)


store = Store.from_url("memory://")
model = store.proxy(Model())
future = store.future(kind=Model)
owned = store.owned_proxy(Model())

# A T: as an argument, annotated or not, in a call that somebody makes for us.
use(model)
annotated(model, model)
annotated(future.proxy(), Model())
passed(use, model)
total(store.proxy([1, 2]), store.proxy(bytearray(3)))
use(store.proxy_batch([Model()])[0])
kept: Model = model
declared: Proxy[Model] = model
for one in StreamConsumer[Model](QueueSubscriber(QueuePublisher(), "models")):
    use(one)
use(borrow(owned))
update(mut_borrow(owned))
assert isinstance(model, Proxy)
use(model)

# With the attributes and operators of one.
reveal_type(store.proxy(Model()).score(1.0))  # float
reveal_type(store.proxy(Model()).weight)  # float
reveal_type(future.proxy().score(1))  # float
reveal_type(future.result())  # Model
reveal_type(extract(store.proxy(Model())))  # Model
reveal_type(len(store.proxy([1, 2])))  # int
reveal_type(borrow(owned).weight)  # float, mypy only
reveal_type(declared.weight)  # float, mypy only
numbers = store.proxy([1, 2])
print(numbers + [3], [3] + numbers, numbers == [1, 2], numbers < [2], -numbers[0], 1 in numbers)
for number in numbers:
    count(number)
store.proxy(max)([1], [2])

# And of nothing else.
count(store.proxy(Model()))  # error
store.proxy(Model()).no_such_thing  # error
wrong: Proxy[int] = store.proxy(Model())  # error
borrow(Model())  # error
