"""Measures mistralrs for `cargo xtask bench-vs`: takes the plan as JSON, prints results as JSON.

It takes text, not tokens, so prompts are made of short words, which are a token each in most
vocabularies. Rates are those it reports about itself. Each test runs once uncounted.
"""

import json
import os
import random
import sys

import mistralrs

WORDS = (
    "the of and to in is was for on that with as it by at from his her they be this have or had "
    "not are but were one all which there when who will more out so up time some what about into"
).split()


def main():
    plan = json.loads(sys.argv[1])
    folder, file = os.path.split(os.path.abspath(plan["model"]))
    # One sequence, and no prefix of an earlier prompt taken from a cache.
    gguf = mistralrs.Which.GGUF(folder, file)
    runner = mistralrs.Runner(which=gguf, max_seqs=1, prefix_cache_n=0)
    draw = random.Random(1)

    def run(prompt, generate):
        text = " ".join(draw.choice(WORDS) for _ in range(max(prompt, 1)))
        request = mistralrs.CompletionRequest(
            model="default", prompt=text, max_tokens=max(generate, 1), temperature=0.0
        )
        return runner.send_completion_request(request).usage

    results = []
    for prompt in filter(None, plan["prompt"]):
        run(prompt, 1)
        results.append(["prefill", prompt, run(prompt, 1).avg_prompt_tok_per_sec])
    if plan["generate"]:
        run(1, plan["generate"])
        rate = run(1, plan["generate"]).avg_compl_tok_per_sec
        results.append(["decode", plan["generate"], rate])
    print(json.dumps(results))


main()
