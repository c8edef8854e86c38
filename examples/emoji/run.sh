#!/usr/bin/env bash
# The recipe of the embedded model, from data to codes: `bash examples/emoji/run.sh`, hours on two CPU cores.
# Data, runs and codes go into `data/` and `runs/` of the current folder. It needs npm, and
# `pip install "uniwetok-hf[train,emoji]"`. What is finished is not made again: after an interruption the same command
# goes on.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tokenizer=runs/emoji_uniwetok_stage3/model

python "$here/emoji_data.py" data/emoji
python "$here/faces_and_text.py" data/faces_and_text
python "$here/photographs.py" data/photographs
python "$here/train_siglip.py" --config "$here/emoji_siglip.yaml" "$here/emoji_judge.yaml"
uniwetok train tokenizer --config "$here"/emoji_uniwetok_stage{1,2,3}.yaml
uniwetok evaluate reconstruction data/emoji --sizes 128 --by style --model "$tokenizer" --output runs/results/reconstruction
for split in train validation; do
  uniwetok encode-dataset data/emoji "data/emoji_codes/$split" --split "$split" --size 128 --model "$tokenizer"
done

echo "The recipe of the language model is being rewritten; commit 84bac22 holds that of the weights that ship (LOG.md)."
