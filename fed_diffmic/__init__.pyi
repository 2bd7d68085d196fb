from fed_diffmic.api import datasets as datasets
from fed_diffmic.api.datasets import partition as partition
from fed_diffmic.api.models import Model as Model
from fed_diffmic.api.models import load_model as load_model
from fed_diffmic.api.runs import Run as Run
from fed_diffmic.api.runs import load_run as load_run
from fed_diffmic.api.runs import simulate as simulate
from fed_diffmic.inference.predictions import Predictions as Predictions

__version__: str
