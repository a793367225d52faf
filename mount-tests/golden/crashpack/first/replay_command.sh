#!/bin/sh
# Judges this crash pack again, from its own files alone.
# Exit code: 0 nothing wrong, 3 the violation is reproduced, 4 the pack was changed.

export PFIMG_SEED_THE_RUN=7
cd "$(dirname "$0")" || exit 1
exec "${PFIMG:-pfimg}" replay --oracle='it'"'"'s a '"'"'seal'"'"'' --oracle=export .
