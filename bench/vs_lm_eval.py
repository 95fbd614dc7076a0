#!/usr/bin/env python3
"""`lpcd eval --tasks` beside lm-evaluation-harness, on the same model and the same items.

  bench/vs_lm_eval.py --model MODEL [--limit 400] arc_easy.jsonl winogrande.jsonl ...

Needs lm-eval (0.4.13), torch and transformers. The harness runs its own task definitions, prompts and
requests; only its data sets are replaced: items of the files, put back into the fields of the originals,
are what its call of datasets.load_dataset returns. MODEL is exported to dense:fp32 for it.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

from runs import run

HERE = pathlib.Path(__file__).resolve().parent


def without(text, prefix, suffix=""):
    if not text.startswith(prefix):
        sys.exit(f"expected {prefix!r} at the beginning of {text!r}")
    return text[len(prefix) :].removesuffix(suffix)


def lettered(item):
    labels = [chr(ord("A") + i) for i in range(len(item["choices"]))]
    return {"choices": {"text": item["choices"], "label": labels}, "answerKey": labels[item["gold"]]}


def from_arc(item):
    return {"question": without(item["query"], "Question: "), **lettered(item)}


def from_openbook(item):
    return {"question_stem": item["query"], **lettered(item)}


def from_piqa(item):
    first, second = item["choices"]
    goal = without(item["query"], "Question: ", "\n")
    return {"goal": goal, "sol1": first, "sol2": second, "label": item["gold"]}


def from_winogrande(item):
    first, second = item["context_options"]
    shared = os.path.commonprefix([first, second])
    return {
        "sentence": f"{shared}_ {item['continuation']}",
        "option1": first[len(shared) :],
        "option2": second[len(shared) :],
        "answer": str(item["gold"] + 1),
    }


def from_lambada(item):
    return {"text": f"{item['context']} {item['continuation']}"}


# Name of the file: name of the harness's task, its data set, how items are put back.
TASKS = {
    "arc_easy": ("arc_easy", ("allenai/ai2_arc", "ARC-Easy"), from_arc),
    "arc_challenge": ("arc_challenge", ("allenai/ai2_arc", "ARC-Challenge"), from_arc),
    "piqa": ("piqa", ("baber/piqa", None), from_piqa),
    "openbook_qa": ("openbookqa", ("allenai/openbookqa", "main"), from_openbook),
    "winogrande": ("winogrande", ("allenai/winogrande", "winogrande_xl"), from_winogrande),
    "lambada_openai": ("lambada_openai", ("EleutherAI/lambada_openai", "default"), from_lambada),
}


def harness_results(model, files, limit, batch_size, threads):
    import datasets
    import lm_eval
    import torch

    torch.set_num_threads(threads)
    local = {}
    for path in files:
        _, source, convert = TASKS[path.stem]
        lines = [line for line in path.read_text().splitlines() if line.strip()]
        items = [convert(json.loads(line)) for line in lines[: limit or None]]
        part = datasets.Dataset.from_list(items)
        local[source] = datasets.DatasetDict({name: part for name in ("train", "validation", "test")})

    def load_dataset(path, name=None, **_):
        return local[path, name]

    datasets.load_dataset = load_dataset
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=[TASKS[path.stem][0] for path in files],
        batch_size=batch_size,
        device="cpu",
        bootstrap_iters=1000,
    )
    return results["results"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path, help=f"JSONL files: {', '.join(TASKS)}")
    parser.add_argument("--lpcd", default=HERE.parent / "build" / "bin" / "lpcd")
    parser.add_argument("--model", required=True)
    parser.add_argument("--limit", type=int, default=0, help="first items of each file; 0: all")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)),
                        help="of the harness; 1 is faster where others use the processors too")
    parser.add_argument("--tolerance", type=float, default=0.5, help="points of accuracy")
    args = parser.parse_args()
    for path in args.files:
        if path.stem not in TASKS:
            sys.exit(f"{path}: not one of {', '.join(TASKS)}")

    with tempfile.TemporaryDirectory() as folder:
        dense = pathlib.Path(folder) / "model"
        run(args.lpcd, "export", args.model, "--format", "dense:fp32", "--out", dense, "--quiet")
        tasks = ",".join(map(str, args.files))
        report = json.loads(run(args.lpcd, "eval", dense, "--tasks", tasks, "--task-limit", args.limit, "--json",
                                "--quiet"))  # fmt: skip
        theirs = harness_results(dense, args.files, args.limit, args.batch_size, args.threads)

    print("| task | items | figure | lpcd | lm-eval | difference |\n|---|---|---|---|---|---|")
    worst = 0
    for path, ours in zip(args.files, report["tasks"]):
        for figure in ("acc", "acc_norm", "perplexity"):
            value = theirs[TASKS[path.stem][0]].get(f"{figure},none")
            if figure not in ours or value is None:
                continue
            points = 1 if figure == "perplexity" else 100
            error = (ours[f"{figure}_stderr"] * points, theirs[TASKS[path.stem][0]][f"{figure}_stderr,none"] * points)
            print(f"| {ours['name']} | {ours['n']} | {figure} | {ours[figure] * points:.2f} +- {error[0]:.2f} | "
                  f"{value * points:.2f} +- {error[1]:.2f} | {(ours[figure] - value) * points:+.3f} |")  # fmt: skip
            if figure != "perplexity":
                worst = max(worst, abs(ours[figure] - value) * 100)
    print(f"\nlpcd took {report['seconds']:.0f} s; largest difference of an accuracy: {worst:.2f} points")
    if worst > args.tolerance:
        sys.exit(f"FAILED: more than {args.tolerance} points")


if __name__ == "__main__":
    main()
