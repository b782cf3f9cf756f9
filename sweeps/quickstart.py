"""quickstart.yaml as a Python sweep file: the same sweep, by the same names.

Costs some minutes on two cores.
"""

from raysweep import Sweep
from raysweep.attacks.badnets import BadNets
from raysweep.attacks.blend import Blend
from raysweep.attacks.sig import SIG
from raysweep.attacks.wanet import WaNet
from raysweep.datasets.digits import Digits
from raysweep.defenses.abl import ABL
from raysweep.defenses.activation_clustering import ActivationClustering
from raysweep.defenses.fine_tuning import FineTuning
from raysweep.defenses.neural_cleanse import NeuralCleanse
from raysweep.defenses.none import NoDefense
from raysweep.defenses.perfect_filter import PerfectFilter
from raysweep.defenses.random_filter import RandomFilter
from raysweep.defenses.spectral_signatures import SpectralSignatures
from raysweep.defenses.strip import Strip
from raysweep.methods import Recipe
from raysweep.models.tiny_cnn import TinyCNN

defenses = [
    NoDefense(),
    PerfectFilter(),
    RandomFilter(),
    SpectralSignatures(),
    ActivationClustering(),
    Strip(),
    FineTuning(),
    ABL(isolation_epochs=8),
    NeuralCleanse(),
]

sweep = Sweep(
    name="quickstart",
    question="Which of nine defenses hold against four classic attacks on scanned digits?",
    dataset=Digits(),
    model=TinyCNN(),
    recipe=Recipe(epochs=12, batch_size=64, learning_rate=0.1),
    attacks=[
        *(BadNets(rate=rate) for rate in (0.0, 0.05)),
        *(Blend(rate=rate) for rate in (0.0, 0.05)),
        SIG(rate=0.06, target=8, delta=120.0, frequency=4.0),
        WaNet(rate=0.1),
    ],
    defenses=defenses,
    # At rate 0 the victim is the clean model: its ASR is the floor of the trigger.
    exclude=[{"rate": 0, "defense": [defense.name for defense in defenses[1:]]}],
    seeds=2,
)
