"""OCPM in PyTorch, to be timed beside the kernel: the same weights, the same slates, on the CPU.

usage: ocpm.py DIRECTORY THREADS

The directory holds weights.safetensors and slates.json. Says `ready` with versions, then answers lines of `WAY ORDERS COUNT` with microseconds
of single slates, and `values ORDERS` with what each order of each slate is worth. WAY is one of:

- batched: all orders of a slate as the rows of one batch
- shared: attention once for a set of items where a page shows all of them, and first layers taken apart, as the kernel has them
- traced-…, compiled-…: the same through torch.jit.trace and freeze, or torch.compile

Histories are encoded before, as the kernel's are.
"""

import json
import sys
import time

import numpy
import torch
from torch.nn.functional import linear, relu

DIMS = 8


def read_tensors(path):
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header, data = json.loads(file.read(size)), file.read()
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            values = numpy.frombuffer(data[begin:end], dtype="<f4").copy()
            tensors[name] = torch.from_numpy(values.reshape(entry["shape"]))
    return tensors


class Ocpm(torch.nn.Module):
    """The whole OCPM for slates of one size; `shared` says how orders are evaluated."""

    def __init__(self, tensors, fields, places, first_place, shared):
        super().__init__()
        self.fields, self.places, self.shared = fields, places, shared
        keep = lambda name, tensor: self.register_buffer(name, tensor.contiguous())
        keep("table", tensors["embeddings"])
        keep("within", torch.stack([tensors[f"ocpm.within{field}.0.weight"] for field in range(fields)]))
        keep("within_bias", torch.stack([tensors[f"ocpm.within{field}.0.bias"] for field in range(fields)])[:, None, :])
        for name, layers in [("mlp1", 4), ("across", 1), ("mlp2", 3), ("attend", 3), ("mlp3", 3)]:
            for layer in range(layers):
                keep(f"{name}_{layer}", tensors[f"ocpm.{name}.{layer}.weight"].T)
                keep(f"{name}_{layer}_bias", tensors[f"ocpm.{name}.{layer}.bias"])
        keep("place", tensors["embeddings"][first_place : first_place + places])
        keep("by_place", tensors["ocpm.mlp1.0.weight"].reshape(places, DIMS, -1))
        of_page, of_behaviour, of_both, of_difference = tensors["ocpm.attend.0.weight"].chunk(4)
        keep("base", of_page + of_difference)
        keep("scaled", of_both)
        keep("shifted", of_behaviour - of_difference)
        wide, item = tensors["ocpm.mlp3.0.weight"], fields * DIMS
        pages = wide.shape[0] - item - 2 * DIMS - 1
        keep("of_page", wide[:pages])
        keep("of_item", torch.cat([wide[pages : pages + item], wide[-1:]]))
        keep("of_shopper", wide[pages + item : pages + item + DIMS])
        keep("of_place", self.place @ wide[pages + item + DIMS : pages + item + 2 * DIMS])

    def layer(self, name, x):
        return linear(x, getattr(self, name), getattr(self, f"{name}_bias"))

    def mlp(self, name, x, layers, last_open=True):
        for layer in range(layers):
            x = self.layer(f"{name}_{layer}", x)
            x = x if last_open and layer == layers - 1 else relu(x)
        return x

    def attention(self, x):
        query, key, value = x.split(DIMS, dim=-1)
        return torch.softmax(query @ key.transpose(-1, -2) * DIMS**-0.5, dim=-1) @ value

    def pages(self, fields):
        """u of pages, of query, key and value of their items by field `[fields, pages, places, 3 · DIMS]`."""
        return self.of_first(relu(self.layer("mlp1_0", self.attention(fields).flatten(2))))

    def of_first(self, first):
        """u of pages, of the first layer of MLP_1 by field `[fields, pages, 128]`."""
        x = relu(self.layer("mlp1_1", first))
        x = relu(self.layer("mlp1_2", x))
        z = self.layer("mlp1_3", x).transpose(0, 1)
        return self.mlp("mlp2", self.attention(self.layer("across_0", z)).flatten(1), 3, last_open=False)

    def project(self, items):
        """Query, key and value of items `[items, fields]`: `[fields, items, 3 · DIMS]`."""
        return torch.baddbmm(self.within_bias, self.table[items.T], self.within)

    def encode(self, history):
        """u of a history's pages `[pages, places, fields]`."""
        pages = history.shape[0]
        return self.pages(self.project(history.flatten(0, 1)).reshape(self.fields, pages, self.places, -1))

    def forward(self, items, shopper, point, history, orders):
        """Log-odds of a click at each place of each order, `[orders, places]`."""
        projected = self.project(items)
        if self.shared and items.shape[0] == self.places:
            tables = torch.einsum("fid,pdo->fpio", self.attention(projected), self.by_place)
            first = self.mlp1_0_bias + sum(tables[:, place, orders[:, place]] for place in range(self.places))
            u = self.of_first(relu(first))
        else:
            u = self.pages(projected[:, orders])
        w = self.interest(u, history)
        embedded = self.table[items].flatten(1)
        if self.shared:
            of_item = torch.cat([embedded, point[:, None]], 1) @ self.of_item + self.table[shopper] @ self.of_shopper
            of_page = linear(torch.cat([u, w], 1), self.of_page.T, self.mlp3_0_bias)
            x = relu(of_page[:, None] + of_item[orders] + self.of_place)
            return self.layer("mlp3_2", relu(self.layer("mlp3_1", x)))[..., 0]
        count = orders.shape[0]
        page = torch.cat([u, w], 1)[:, None].expand(-1, self.places, -1)
        who = self.table[shopper].expand(count, self.places, -1)
        where = self.place.expand(count, -1, -1)
        x = torch.cat([page, embedded[orders], who, where, point[orders][..., None]], 2)
        return self.mlp("mlp3", x, 3)[..., 0]

    def interest(self, u, history):
        if history.shape[0] == 0:
            return torch.zeros_like(u)
        if self.shared:
            layers = self.base + history[:, :, None] * self.scaled
            x = relu(torch.baddbmm((history @ self.shifted + self.attend_0_bias)[:, None], u.expand(history.shape[0], -1, -1), layers))
            weights = self.layer("attend_2", relu(self.layer("attend_1", x)))
            return (weights * history[:, None]).sum(0)
        page, behaviour = u[:, None].expand(-1, history.shape[0], -1), history.expand(u.shape[0], -1, -1)
        weights = self.mlp("attend", torch.cat([page, behaviour, page * behaviour, page - behaviour], 2), 3)
        return (weights * behaviour).sum(1)


class Bench:
    def __init__(self, directory):
        tensors = read_tensors(f"{directory}/weights.safetensors")
        with open(f"{directory}/slates.json") as file:
            slates = json.load(file)
        model = lambda shared: Ocpm(tensors, slates["fields"], slates["places"], slates["first_place"], shared).eval()
        self.models = {"batched": model(False), "shared": model(True)}
        self.all = torch.tensor(slates["all"])
        self.slates = [self.prepare(slate) for slate in slates["slates"]]
        self.ready = {}

    def prepare(self, slate):
        history = torch.tensor(slate["history"], dtype=torch.long)
        u = self.models["batched"].encode(history) if slate["history"] else torch.zeros(0, 20)
        items, shopper = torch.tensor(slate["items"]), torch.tensor(slate["shopper"])
        return (items, shopper, torch.tensor(slate["point"]), u), torch.tensor(slate["some"])

    def inputs(self, slate, orders):
        given, some = slate
        return (*given, self.all if orders == "all" else some)

    def model(self, way, orders):
        if (way, orders) not in self.ready:
            how, _, name = way.rpartition("-")
            model, example = self.models[name], self.inputs(self.slates[0], orders)
            if how == "traced":
                model = torch.jit.freeze(torch.jit.trace(model, example))
            elif how == "compiled":
                model = torch.compile(model, dynamic=False)
            # What compiles, or specialises after some runs, has done so.
            for slate in self.slates[:20]:
                model(*self.inputs(slate, orders))
            self.ready[way, orders] = model
        return self.ready[way, orders]

    def arrange(self, model, inputs):
        """Number of the best order, and the orders' values."""
        values = torch.sigmoid(model(*inputs)).sum(1)
        return int(values.argmax()), values

    def time(self, way, orders, count):
        model, times = self.model(way, orders), []
        for number in range(count):
            inputs = self.inputs(self.slates[number % len(self.slates)], orders)
            start = time.perf_counter_ns()
            self.arrange(model, inputs)
            times.append((time.perf_counter_ns() - start) / 1000)
        return times

    def values(self, orders):
        return {
            way: [self.arrange(self.model(way, orders), self.inputs(slate, orders))[1].tolist() for slate in self.slates]
            for way in self.models
        }


def main():
    directory, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    with torch.inference_mode():
        bench = Bench(directory)
        print("ready", torch.__version__, flush=True)
        for line in sys.stdin:
            way, *rest = line.split()
            answer = bench.values(*rest) if way == "values" else bench.time(way, rest[0], int(rest[1]))
            print(json.dumps(answer), flush=True)


main()
