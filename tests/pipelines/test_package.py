"""What importing the package costs, and what it offers."""

import subprocess
import sys

from astra.pipelines.slam.training import train


def test_importing_the_numerics_does_not_wait_for_them():
    code = "import sys, astra.pipelines.slam as s; print('astra.pipelines.slam.fit' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_train_is_the_function_each_time():
    import astra.pipelines.slam as package

    assert package.train is train and package.train is train
