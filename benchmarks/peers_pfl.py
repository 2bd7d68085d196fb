"""The work of ``benchmarks.peers`` in pfl-research (``pfl``), as its documents have it: federated averaging, simulated.

python -m benchmarks.peers_pfl SITES DRAWN ROUNDS OUT

Run by ``python -m benchmarks.peers``, with the Python that its ``--pfl-python`` names. The judges' images are judged
in one piece after each round, by pfl's own callback; metrics before and after each site's training are left out.
"""

from __future__ import annotations

import collections
import sys
from typing import Any

import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from benchmarks.peers_work import BATCH, JUDGED, JUDGES, RATE, Clock, images_of, network, order_of, tell


class Network(torch.nn.Module):
    """The CNN with the two methods that pfl asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.inner(images), labels)

    @torch.no_grad()
    def metrics(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Weighted]:
        """Loss and accuracy."""
        scores = self.inner(images)
        right = float((scores.argmax(1) == labels).sum())
        loss = float(F.cross_entropy(scores, labels, reduction="sum"))
        return {"loss": Weighted(loss, len(labels)), "accuracy": Weighted(right, len(labels))}


class Rounds(TrainingProcessCallback):
    """Ticks when a round is over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def after_central_iteration(self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int) -> Any:
        """A round is over; go on."""
        self._clock.tick()
        return False, Metrics()


def main() -> None:
    """Command line."""
    sites, drawn, rounds = (int(value) for value in sys.argv[1:4])
    torch.set_num_threads(1)
    taken: collections.Counter[int] = collections.Counter()

    def dataset(site: int) -> Dataset:
        taken[site] += 1
        images, labels = images_of(site)
        order = torch.from_numpy(order_of(site, taken[site]))
        return Dataset([images[order], labels[order]], user_id=str(site))

    torch_model = Network()
    model = PyTorchModel(torch_model, torch.optim.SGD, torch.optim.SGD(torch_model.parameters(), lr=1.0))
    training = FederatedDataset(dataset, get_user_sampler("minimize_reuse", list(range(sites))))
    backend = SimulatedBackend(training_data=training, val_data=training, postprocessors=[WeightByDatapoints()])
    judged = [images_of(site, JUDGED) for site in range(min(JUDGES, sites))]
    central = Dataset([torch.cat([images for images, _ in judged]), torch.cat([labels for _, labels in judged])])
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds, evaluation_frequency=rounds + 1, train_cohort_size=drawn, val_cohort_size=0
        ),
        backend=backend,
        model=model,
        model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=RATE, local_batch_size=BATCH),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[CentralEvaluationCallback(central), Rounds(clock)],
    )
    tell(sys.argv[4], clock, torch_model.inner.state_dict())


if __name__ == "__main__":
    main()
