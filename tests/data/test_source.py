"""Finding a corpus: which shards, from where, and what is refused."""

import hashlib
from pathlib import Path

import pytest

from parcontrol.config import DataConfig
from parcontrol.data import open_corpus
from tests.data.corpora import lines_of, write_corpus, write_shard

# The shards that seed 42 chooses of the Pile's 30: another choice would be another experiment.
CHOSEN_BY_42 = ["00", "03", "07", "15", "18", "25", "28", "29"]


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 train shards, as the Pile has."""
    return write_corpus(tmp_path_factory.mktemp("pile"), [[f"shard {i}"] for i in range(30)])


def chosen(folder: Path, **options: object) -> list[str]:
    return [shard.name for shard in open_corpus(DataConfig(repo=str(folder), **options)).train_shards]


def test_eight_of_thirty_shards_are_chosen_by_seed(pile: Path) -> None:
    assert chosen(pile) == [f"train/{number}.jsonl.zst" for number in CHOSEN_BY_42]
    by_hash = sorted(
        (hashlib.sha256(f"shard/42/train/{i:02d}.jsonl.zst".encode()).hexdigest()[:16], i) for i in range(30)
    )
    assert sorted(i for _, i in by_hash[:8]) == [int(number) for number in CHOSEN_BY_42]


def test_another_seed_chooses_other_shards(pile: Path) -> None:
    choices = {tuple(chosen(pile, seed=seed)) for seed in range(20)}
    assert len(choices) == 20
    assert len({name for choice in choices for name in choice}) == 30, "every shard has its chance"


def test_more_shards_keep_the_ones_chosen_before(pile: Path) -> None:
    assert set(chosen(pile, num_shards=8)) < set(chosen(pile, num_shards=9))


def test_a_corpus_knows_its_sizes_and_opens_its_shards(pile: Path) -> None:
    corpus = open_corpus(DataConfig(repo=str(pile), num_shards=1))
    shard = corpus.train_shards[0]
    content = (pile / shard.name).read_bytes()
    assert (corpus.name, corpus.revision, shard.size) == (str(pile), "local", len(content))
    assert [shard.name for shard in corpus.validation_shards] == ["val.jsonl.zst"]
    with shard.open() as file:
        assert file.read() == content


def test_more_shards_than_there_are_is_an_error(pile: Path) -> None:
    with pytest.raises(ValueError, match=r"data.num_shards 31 is more than the 30 train shards"):
        chosen(pile, num_shards=31)


def test_a_missing_chosen_shard_is_named_and_never_replaced(pile: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for path in pile.rglob("*.zst"):
        if path.name != "07.jsonl.zst":
            (tmp_path / path.relative_to(pile)).symlink_to(path)
    with pytest.raises(ValueError, match=r"no shard train/07\.jsonl\.zst \(byte 0\), which data\.seed 42 chooses"):
        chosen(tmp_path)


def test_shards_that_are_not_chosen_may_be_missing(pile: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    for number in CHOSEN_BY_42:
        (tmp_path / f"train/{number}.jsonl.zst").symlink_to(pile / f"train/{number}.jsonl.zst")
    (tmp_path / "val.jsonl.zst").symlink_to(pile / "val.jsonl.zst")
    assert chosen(tmp_path) == chosen(pile)


def test_shards_need_no_numbers(tmp_path: Path) -> None:
    for name in ("books", "code", "web-7"):
        write_shard(tmp_path / f"train/{name}.jsonl.zst", lines_of([name]))
    write_shard(tmp_path / "val.jsonl.zst", lines_of(["val"]))
    assert chosen(tmp_path, num_shards=3) == [f"train/{name}.jsonl.zst" for name in ("books", "code", "web-7")]


@pytest.mark.parametrize("names", [["2019", "2020", "2023"], ["20190101", "20240229"], ["1", "02"]], ids=str)
def test_numbers_that_do_not_count_shards_have_no_gaps(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write_shard(tmp_path / f"train/{name}.jsonl.zst", lines_of([name]))
    write_shard(tmp_path / "val.jsonl.zst", lines_of(["val"]))
    assert chosen(tmp_path, num_shards=len(names)) == sorted(f"train/{name}.jsonl.zst" for name in names)


def test_other_files_are_no_shards(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", [["a"]])
    for other in ("train/notes.txt", "train/deep/00.jsonl.zst", "00.jsonl.zst", "README.md"):
        (tmp_path / "c" / other).parent.mkdir(exist_ok=True)
        (tmp_path / "c" / other).write_bytes(b"")
    assert chosen(tmp_path / "c", num_shards=1) == ["train/00.jsonl.zst"]
    with pytest.raises(ValueError, match="more than the 1 train shards"):
        chosen(tmp_path / "c", num_shards=2)


@pytest.mark.parametrize("names", [["validation.jsonl.zst"], ["val/00.jsonl.zst", "val/01.jsonl.zst"]])
def test_the_validation_split_may_be_named_in_full_or_have_shards(tmp_path: Path, names: list[str]) -> None:
    write_corpus(tmp_path, [["a"]])
    (tmp_path / "val.jsonl.zst").unlink()
    for name in names:
        write_shard(tmp_path / name, lines_of(["a"]))
    corpus = open_corpus(DataConfig(repo=str(tmp_path), num_shards=1))
    assert [shard.name for shard in corpus.validation_shards] == names


def test_a_corpus_without_validation_split_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path, [["a"]])
    (tmp_path / "val.jsonl.zst").unlink()
    with pytest.raises(ValueError, match=r"has no validation split \(val\.jsonl\.zst\)"):
        chosen(tmp_path, num_shards=1)


def test_a_folder_name_with_pattern_characters_is_taken_as_it_is(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c [1]* ?", [["a"]])
    assert chosen(tmp_path / "c [1]* ?", num_shards=1) == ["train/00.jsonl.zst"]


def test_folders_and_files_may_be_links(pile: Path, tmp_path: Path) -> None:
    for name in ("train", "val.jsonl.zst"):
        (tmp_path / name).symlink_to(pile / name)
    corpus = open_corpus(DataConfig(repo=str(tmp_path)))
    assert [shard.name for shard in corpus.train_shards] == chosen(pile)
    assert all(shard.size == (pile / shard.name).stat().st_size for shard in corpus.train_shards)
    assert corpus.validation_shards[0].size == (pile / "val.jsonl.zst").stat().st_size


def test_a_folder_in_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_corpus(tmp_path / "corpus", [["a"]])
    assert chosen(Path("~/corpus"), num_shards=1) == ["train/00.jsonl.zst"]


class TestMirror:
    """An offline mirror takes the place of the Hub, and is never passed over."""

    @pytest.fixture
    def mirror(self, tmp_path: Path) -> Path:
        write_corpus(tmp_path / "mirror/datasets/someone/texts", [["a"]])
        (tmp_path / "mirror/models/someone/model").mkdir(parents=True)
        return tmp_path / "mirror"

    def test_by_configuration(self, mirror: Path) -> None:
        corpus = open_corpus(DataConfig(repo="someone/texts", mirror=str(mirror), num_shards=1))
        assert (corpus.name, corpus.revision) == ("someone/texts", "local")

    def test_by_environment(self, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PARCONTROL_MIRROR", str(mirror))
        corpus = open_corpus(DataConfig(repo="someone/texts", num_shards=1))
        assert Path(corpus.train_shards[0].path) == mirror / "datasets/someone/texts/train/00.jsonl.zst"

    def test_configuration_wins_over_environment(self, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PARCONTROL_MIRROR", "/nowhere")
        assert open_corpus(DataConfig(repo="someone/texts", mirror=str(mirror), num_shards=1)).train_shards

    def test_without_the_dataset(self, mirror: Path) -> None:
        with pytest.raises(ValueError, match=r"mirror .* holds no folder datasets/someone/other"):
            open_corpus(DataConfig(repo="someone/other", mirror=str(mirror)))

    def test_has_no_revisions(self, mirror: Path) -> None:
        with pytest.raises(ValueError, match=r"data.revision 'v1' cannot be had .* leave data.revision out"):
            open_corpus(DataConfig(repo="someone/texts", mirror=str(mirror), revision="v1"))

    def test_the_recorded_revision_of_a_mirror_leads_back_to_it(self, mirror: Path) -> None:
        assert open_corpus(DataConfig(repo="someone/texts", mirror=str(mirror), revision="local", num_shards=1))


def test_without_a_network_the_message_says_what_to_do() -> None:
    # HF_HUB_OFFLINE is set for all tests.
    with pytest.raises(ValueError, match=r"(?s)'monology/pile-uncopyrighted'.*out of reach.*data.mirror") as error:
        open_corpus(DataConfig())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("repo", ["/nowhere/at/all", "./nowhere", "~/nowhere", "some/deep/folder"])
def test_a_folder_that_is_not_there(repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARCONTROL_MIRROR", "/")
    with pytest.raises(ValueError, match=f"data.repo '{repo}': there is no such folder"):
        open_corpus(DataConfig(repo=repo))


@pytest.mark.parametrize("repo", ["no such/na me"])
def test_a_name_that_is_neither_folder_nor_dataset(repo: str) -> None:
    with pytest.raises(ValueError, match="neither a folder here nor on the Hub"):
        open_corpus(DataConfig(repo=repo))
