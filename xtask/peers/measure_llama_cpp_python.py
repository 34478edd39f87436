"""Measures llama-cpp-python for `cargo xtask bench-vs`: takes the plan as JSON, prints results as
JSON. Random tokens, as in llama-bench; each test runs once uncounted.
"""

import json
import random
import sys
import time

import llama_cpp


def main():
    plan = json.loads(sys.argv[1])
    longest = max(plan["prompt"] + [plan["generate"], 1])
    model = llama_cpp.Llama(
        model_path=plan["model"],
        n_ctx=longest + 16,
        n_batch=2048,
        n_ubatch=512,
        n_threads=plan["threads"],
        n_threads_batch=plan["threads"],
        verbose=False,
    )
    draw = random.Random(1)

    def seconds(count, at_once):
        tokens = [draw.randrange(model.n_vocab()) for _ in range(count)]
        model.reset()
        start = time.perf_counter()
        for first in range(0, count, at_once):
            model.eval(tokens[first : first + at_once])
        return time.perf_counter() - start

    results = []
    tests = [("prefill", count, count) for count in plan["prompt"]]
    for kind, count, at_once in tests + [("decode", plan["generate"], 1)]:
        if count:
            seconds(count, at_once)
            results.append([kind, count, count / seconds(count, at_once)])
    print(json.dumps(results))


main()
