"""Where the files of the named sets come from, and how each is told from a damaged one.

The addresses are public and in order of preference, https first. A checksum and not an address
makes a file what it is, so a mirror may be added or dropped freely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class SourceFile:
    """One file of a named set.

    Attributes:
        path: relative to the data directory: `<set>/<file>`.
        size: bytes, exact or nearly so; a download may be at most twice as large.
        algorithm: of `digest`. md5 only where the publisher gives nothing better.
        digest: hexadecimal, of the file as published.
        content_sha256: hexadecimal, of an IDX file's uncompressed content; it admits a copy that
            was compressed anew. Empty where it does not apply.
        urls: mirrors in order; empty where nobody publishes the file in this form.
    """

    path: str
    size: int
    algorithm: Literal["sha256", "md5"]
    digest: str
    content_sha256: str = ""
    urls: tuple[str, ...] = ()


MIRRORS: dict[str, tuple[str, ...]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://raw.githubusercontent.com/fgnt/mnist/master/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    "fashion_mnist": (
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    "notmnist": (
        "https://github.com/davidflanagan/notMNIST-to-MNIST/raw/"
        "17823f4d4a3acd8317c07866702d2eb2ac79c7a0/",
    ),
}

# path, size, sha256 of the file, sha256 of its uncompressed content
_IDX_FILES = """
mnist/train-images-idx3-ubyte.gz 9912422
    440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
    ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db
mnist/train-labels-idx1-ubyte.gz 28881
    3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
    65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
mnist/t10k-images-idx3-ubyte.gz 1648877
    8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
    0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7
mnist/t10k-labels-idx1-ubyte.gz 4542
    f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
    ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2
fashion_mnist/train-images-idx3-ubyte.gz 26421880
    3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84
    c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888
fashion_mnist/train-labels-idx1-ubyte.gz 29515
    a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845
    bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9
fashion_mnist/t10k-images-idx3-ubyte.gz 4422102
    346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073
    5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b
fashion_mnist/t10k-labels-idx1-ubyte.gz 5148
    67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5
    0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34
notmnist/t10k-images-idx3-ubyte.gz 3172375
    70ae9e06201f2827e5b0a3781a3169d735dd2efc69996b9eeaee7f10ed4044d7
    8e7f38ae95cc8f48e0986175ffc9137e5007ebcf3d8fdf6656c904eb9dab198b
notmnist/t10k-labels-idx1-ubyte.gz 5118
    1fa03836e01c862542f8eb83463bb951bebec6fcb3efa28dad748c6b38a9021b
    5f8e6012f2ce730700d8d05fca098bc47f71d25b890e4bec7ac5ebfd614a4001
omniglot/t10k-images-idx3-ubyte.gz 433284
    b4ed0e9cb9c3f3d54b22a14a90bed93fd6ced273bbc1d114872512c26c30d9e6
    79b96fc03518001fa1430cac81c29555325326f3c4b387ac7d2d32d0065135d5
omniglot/t10k-labels-idx1-ubyte.gz 65
    7b92abc40168a27a51941a9db09e6663e5689eb2bc3469ef3464f533896b4871
    9b964fcdffff4be65708254dc781579b2d0efb861aea1a3547beeca7c0edda3e
usps/t10k-images-idx3-ubyte.gz 625584
    60f617d561f38996ef8f31d72d1a3ada339d09d8848b812b9772228f8a0271e0
    21d3cca8ca33e6f1fcc79b12a53f13ebf08e7d1d5b1f2ee7dcecf404581c3a46
usps/t10k-labels-idx1-ubyte.gz 979
    4fd08c962dd005c8178aecb47457e078717298f57142b687728ce264d9640e5d
    9d60836db74a1ffe67829f9a2546bd594d5d321f778dbca1578c041da94483a2
cifar10/train-labels-idx1-ubyte.gz 24710
    a3882c8cf67a97cb5011b93f9e0e66b86821d1596b9c43e286d587d9132ecc53
    1a4c5fb4e1cab2caa8eee134c093de84d620899e907756e71736fb7b0d4ab554
cifar10/t10k-labels-idx1-ubyte.gz 5102
    b39ab3437bbef25f3bbfb2cd1cbfb2e25d57c7e56a5d3195f9c44d4682a83ca3
    987e01129ceec0098f1e9d9404cff9fa82ad3d15383a61e8ec60ff20ffe6db40
"""

# path, size, sha256 of the file
_MOSAICS = """
cifar10/train_1.webp 17112262 7d659541ed95237ea4e04e2d33389e1104c1953861748ff53d660d6c8d6654f9
cifar10/train_2.webp 17134122 51af9519a93c50876c6e10004965e1e5959387da1f8d7b96f16f7ca26219af79
cifar10/train_3.webp 17163420 3c724790d972e645054d7cc995e1535ee05064097410e5a14c537c7145a70db8
cifar10/train_4.webp 17153410 7e1e0d309a2ac32bb67831184e997f88a9e74324a01f95cc481819c6955db2b3
cifar10/train_5.webp 17114608 1d3f867bf1d6f975111042b2a5f839fd80c93de1c03f75c667d7840bd55da85c
cifar10/test.webp 17144124 df199aec7516a004a23ad02816a63a368d2208347ff1c4011eaa91a2503201fc
"""


def _registry() -> dict[str, SourceFile]:
    files = [
        SourceFile(
            "cifar10/cifar-10-python.tar.gz",
            170498071,
            "md5",
            "c58f30108f718f92721af3b95e74349a",
            urls=("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
        ),
        SourceFile(
            "usps/usps.t.bz2",
            1831726,
            "md5",
            "8ea070ee2aca1ac39742fdd1ef5ed118",
            urls=("https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/usps.t.bz2",),
        ),
        SourceFile(
            "hmc_cifar10/probs.csv",
            2500000,
            "sha256",
            "4299e2e90a445fcdc6b20ebfc6f233cb214c1930635c11b3bf9c4b7e1c23b4c6",
            urls=(
                "https://raw.githubusercontent.com/izmailovpavel/neurips_bdl_starter_kit/main/"
                "data/cifar10/probs.csv",
            ),
        ),
    ]
    words = iter(_IDX_FILES.split())
    for path, size, digest, content in zip(words, words, words, words, strict=True):
        set_name, _, file_name = path.partition("/")
        urls = tuple(mirror + file_name for mirror in MIRRORS.get(set_name, ()))
        files.append(SourceFile(path, int(size), "sha256", digest, content, urls))
    words = iter(_MOSAICS.split())
    for path, size, digest in zip(words, words, words, strict=True):
        files.append(SourceFile(path, int(size), "sha256", digest))
    return {file.path: file for file in files}


SOURCES: dict[str, SourceFile] = _registry()
"""Every file of every named set, by its path relative to the data directory."""
