"""tools/convert_efficientnet_lite.py: a file under other names becomes one that timm loads."""

import pytest
import timm
import torch


def under_other_names(network):
    """As the packages name tensors: other modules, the same parameters in the same order."""
    return {
        f"_layer{i}.{name.rpartition('.')[2]}": x
        for i, (name, x) in enumerate(network.state_dict().items())
    }


@pytest.fixture
def convert(load_tool, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["convert_efficientnet_lite.py", *map(str, arguments)])
        load_tool("convert_efficientnet_lite").main()

    return run


def test_network_computes_the_same(convert, tmp_path):
    torch.manual_seed(0)
    # The packages' tensors are not contiguous.
    network = (
        timm.create_model("tf_efficientnet_lite0").eval().to(memory_format=torch.channels_last)
    )
    torch.save(under_other_names(network), tmp_path / "weights.pth")
    output = tmp_path / "new" / "lite0.safetensors"
    convert("lite0", output, "--weights", tmp_path / "weights.pth")
    loaded = timm.create_model("tf_efficientnet_lite0", checkpoint_path=str(output)).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), network(image))
    with pytest.raises(FileExistsError, match="exists already"):
        convert("lite0", output, "--weights", tmp_path / "weights.pth")


def test_file_of_another_network(convert, tmp_path):
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="weights of another network"):
        convert("lite0", tmp_path / "x.safetensors", "--weights", tmp_path / "weights.pth")
    assert not (tmp_path / "x.safetensors").exists()
    with pytest.raises(ValueError, match="has to end in .safetensors"):
        convert("lite0", tmp_path / "x.pth")
