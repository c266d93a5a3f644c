"""python parse_test_res.py DIRECTORY [--test-log] [--keyword accuracy]: the mean over the runs in a directory."""

import argparse
import os.path as osp
import re

import numpy as np

from dassl.utils import check_isfile, listdir_nohidden


def parse(directory, keyword, end_signal):
    regex = re.compile(rf"\* {keyword}: ([\.\deE+-]+)%")
    values = []
    for folder in listdir_nohidden(directory, sort=True):
        path = osp.join(directory, folder, "log.txt")
        if not check_isfile(path):
            continue
        good_to_go, value = False, None
        with open(path) as file:
            for line in file:
                line = line.strip()
                good_to_go = good_to_go or line == end_signal
                match = regex.search(line)
                if match and good_to_go:
                    value = float(match.group(1))
        if value is not None:
            print(f"file: {path}. {keyword}: {value:.2f}%")
            values.append(value)
    print(f"* {keyword}: {np.mean(values):.2f}% +- {1.96 * np.std(values) / np.sqrt(len(values)):.2f}%")


parser = argparse.ArgumentParser()
parser.add_argument("directory", type=str)
parser.add_argument("--test-log", action="store_true")
parser.add_argument("--end-signal", default="Finish training")
parser.add_argument("--keyword", default="accuracy", type=str)
args = parser.parse_args()
parse(args.directory, args.keyword, "=> result" if args.test_log else args.end_signal)
