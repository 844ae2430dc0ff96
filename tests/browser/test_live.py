"""The page that enlarges images in the browser: `pytest tests/browser --site FOLDER`."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect
from skimage import data

import reparam
from reparam.sr._upscale.color import bicubic

NETWORKS = [name for name in reparam.list_models(pretrained=True) if not name.endswith("_y")]
PHOTO = data.coffee()[80:230, 150:450]  # more than one tile in both directions


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def choose(page, content, name="photo.png"):
    page.set_input_files("#live-file", {"name": name, "mimeType": "image/png", "buffer": content})


def decode_late(page):
    """The browser decodes slow.png when it is told to go on."""
    page.evaluate(
        """() => {
            const decode = createImageBitmap;
            const told = new Promise((done) => (window.goOn = done));
            window.createImageBitmap = async (file) => {
                if (file.name !== "slow.png") return decode(file);
                await told;
                return decode(file).finally(() => (document.body.dataset.slow = "decoded"));
            };
        }"""
    )


def go_on(page):
    """Lets slow.png be decoded, and waits for what the page does with it, which reads files that are no images."""
    page.evaluate("goOn()")
    page.wait_for_selector("body[data-slow='decoded']")
    page.evaluate("async () => { await new Blob(['text']).arrayBuffer(); await new Promise(requestAnimationFrame); }")


def enlarged(page, canvas="ours"):
    expect(page.locator("#live-download")).to_be_enabled(timeout=60_000)
    url = page.evaluate(f"document.getElementById('live-{canvas}').toDataURL()")
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))
    assert (pixels[..., 3] == 255).all()
    return pixels[..., :3]


def assert_equal(got, wanted):
    assert got.shape == wanted.shape
    assert np.abs(got.astype(int) - wanted).max() <= 1


def python(image, name="repsr_m4c16_x2"):
    return reparam.Upscaler(name, engine="torch")(image)


@pytest.mark.parametrize("name", NETWORKS)
def test_pixels_are_those_of_python(page, name):
    page.select_option("#live-network", label=name)
    choose(page, encoded(PHOTO))
    assert_equal(enlarged(page), python(PHOTO, name))
    scale = int(name[-1])
    small = torch.from_numpy(PHOTO.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    cubic = bicubic(small, scale)[0].permute(1, 2, 0).numpy()
    assert_equal(enlarged(page, "bicubic"), np.rint(255 * cubic).clip(0, 255))
    expect(page.locator("#live-result")).to_contain_text(f"300x150 pixels became {scale * 300}x{scale * 150}: ")


def test_a_still_picture_is_shown_until_an_image_is_chosen(page):
    assert page.locator("#live-still img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [480, 360]
    choose(page, encoded(PHOTO))
    expect(page.locator("#live-still")).to_be_hidden()
    enlarged(page)


def test_tiles_leave_no_seam(page):
    noise = 255 * np.random.default_rng(0).integers(0, 2, (150, 300, 1), dtype=np.uint8).repeat(3, axis=2)
    choose(page, encoded(noise))
    assert_equal(enlarged(page), python(noise))  # a pixel less of overlap differs by 2


def test_every_network_for_rgb_can_be_chosen(page):
    assert page.locator("#live-network option").all_inner_texts() == NETWORKS


def test_gray_images_and_images_of_one_pixel(page):
    choose(page, encoded(PHOTO[:, :, 0]))
    assert_equal(enlarged(page), python(PHOTO[:, :, :1].repeat(3, axis=2)))
    choose(page, encoded(PHOTO[:1, :1]))
    expect(page.locator("#live-result")).to_contain_text("1x1 pixels became 2x2")
    assert_equal(enlarged(page), python(PHOTO[:1, :1]))


def test_transparent_images_are_laid_on_white(page):
    seen = np.indices(PHOTO.shape[:2]).sum(0) % 50 < 30
    choose(page, encoded(np.dstack([PHOTO, 255 * seen.astype(np.uint8)])))
    assert_equal(enlarged(page), python(np.where(seen[..., None], PHOTO, 255).astype(np.uint8)))


def test_photos_are_turned_upright(page):
    exif = Image.Exif()
    exif[0x0112] = 6
    choose(page, encoded(PHOTO[:20, :30], "JPEG", exif=exif))
    expect(page.locator("#live-result")).to_contain_text("20x30 pixels became 40x60")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            b"Dear diary, today",
            "notes.png is no image that this browser reads, but text that begins “Dear diary, today”",
        ),
        (b"", "an empty file"),
        (b"%PDF-1.7\n\xe2\xe3\xcf\xd3", "a PDF"),
        (encoded(PHOTO)[:40] + b"\0" * 60, "100 bytes, of type image/png"),
    ],
)
def test_a_wrong_file_is_told_and_a_right_one_still_works(page, content, told):
    choose(page, content, "notes.png")
    expect(page.locator("#live-file")).to_have_value("")  # else the same name could not be chosen again
    expect(page.locator("#live-problem")).to_contain_text(told)
    expect(page.locator("#live-problem")).to_contain_text("Choose a PNG, JPEG, WebP, AVIF, GIF or BMP.")
    choose(page, encoded(PHOTO))
    assert_equal(enlarged(page), python(PHOTO))
    expect(page.locator("#live-problem")).to_be_hidden()


def test_a_wrong_file_does_not_stop_what_is_being_enlarged(page):
    choose(page, encoded(PHOTO))
    choose(page, b"text", "notes.txt")
    told = expect(page.locator("#live-problem"))
    told.to_contain_text("text that begins “text”")
    assert_equal(enlarged(page), python(PHOTO))
    told.to_be_visible()


def test_a_wrong_file_does_not_stop_what_is_being_decoded(page):
    decode_late(page)
    choose(page, encoded(PHOTO), "slow.png")
    choose(page, b"text", "notes.txt")
    told = expect(page.locator("#live-problem"))
    told.to_contain_text("text that begins “text”")
    go_on(page)
    assert_equal(enlarged(page), python(PHOTO))
    told.to_be_visible()


def test_a_wrong_file_that_is_read_late_is_not_told_beside_a_later_one(page):
    decode_late(page)
    choose(page, b"text", "slow.png")
    choose(page, encoded(PHOTO))
    assert_equal(enlarged(page), python(PHOTO))
    go_on(page)
    expect(page.locator("#live-problem")).to_be_hidden()


def test_results_that_are_too_large_are_refused(page):
    choose(page, encoded(Image.new("1", (4000, 4000))))
    expect(page.locator("#live-problem")).to_contain_text("8000x8000 pixels, 64 megapixels; at most 50 are possible")
    expect(page.locator("#live-stage")).to_be_hidden()
    choose(page, encoded(PHOTO))
    assert_equal(enlarged(page), python(PHOTO))


def test_a_canvas_that_the_browser_cannot_make_is_told(page):
    choose(page, encoded(Image.new("1", (40_000, 4))))
    expect(page.locator("#live-problem")).to_contain_text("This browser has no room for 80000x8 pixels.")


def test_what_was_chosen_last_is_what_is_shown(page):
    choose(page, encoded(PHOTO))
    page.select_option("#live-network", label="repsr_m4c16_x3")
    page.select_option("#live-network", label="repsr_m4c16_x4")
    assert_equal(enlarged(page), python(PHOTO, "repsr_m4c16_x4"))


def test_a_file_that_is_decoded_late_does_not_replace_a_later_one(page):
    decode_late(page)
    choose(page, encoded(PHOTO[:9, :9]), "slow.png")
    choose(page, encoded(PHOTO))
    assert_equal(enlarged(page), python(PHOTO))
    go_on(page)
    assert_equal(enlarged(page), python(PHOTO))


def left_of_ours(page):
    """Where what is seen of the network's image begins, in widths of the view."""
    return page.evaluate(
        r"""() => {
            const [ours, view] = ["ours", "view"].map((name) => document.getElementById(`live-${name}`));
            return (parseFloat(ours.style.clipPath.match(/[\d.]+(?=px\)$)/)) - view.scrollLeft) / view.clientWidth;
        }"""
    )


def test_the_divide_moves_by_keyboard_and_mouse_and_stays_when_the_view_scrolls(page):
    choose(page, encoded(PHOTO))
    enlarged(page)
    assert left_of_ours(page) == pytest.approx(0.5)
    page.focus("#live-divide")
    page.keyboard.press("Home")
    assert left_of_ours(page) == pytest.approx(0)
    page.keyboard.press("PageUp")
    assert left_of_ours(page) == pytest.approx(0.1)
    box = page.locator("#live-view").bounding_box()
    x, y = box["x"] + box["width"] * 0.1, box["y"] + box["height"] / 3
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + box["width"] * 0.6, y)
    page.mouse.up()
    assert left_of_ours(page) == pytest.approx(0.7, abs=0.01)
    page.select_option("#live-zoom", "4")
    page.locator("#live-view").evaluate("view => view.scrollTo(33, 0)")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # its event is out
    assert page.locator("#live-view").evaluate("view => view.scrollLeft") == 33
    assert left_of_ours(page) == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize(
    "event",
    [
        "new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true})",
        "new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true})",
    ],
)
def test_images_are_dropped_and_pasted(page, event):
    page.evaluate(
        f"""bytes => {{
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "photo.png", {{type: "image/png"}}));
            document.body.dispatchEvent({event});
        }}""",
        list(encoded(PHOTO)),
    )
    assert_equal(enlarged(page), python(PHOTO))


def test_what_is_dropped_must_be_a_file(page):
    page.evaluate(
        "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer(), bubbles: true}))"
    )
    expect(page.locator("#live-problem")).to_contain_text("What was dropped is no file.")


def test_the_sample_is_enlarged_and_downloaded(page):
    page.click("#live-sample")
    shown = enlarged(page)
    with page.expect_download() as download:
        page.click("#live-download")
    assert download.value.suggested_filename == "chelsea_x2.png"
    saved = np.array(Image.open(download.value.path()).convert("RGB"))
    assert (saved == shown).all() and shown.shape == (360, 480, 3)


def test_an_image_may_be_chosen_before_the_networks_are_there(browser, address):
    page, held = browser.new_page(), []
    page.route("**/networks.json", lambda route: held.append(route))
    with page.expect_request("**/networks.json"):
        page.goto(f"{address}live/")
    choose(page, encoded(PHOTO))
    expect(page.locator("#live-file")).to_have_value("")
    held[0].continue_()
    assert_equal(enlarged(page), python(PHOTO))
    page.close()


def test_a_missing_network_is_told_and_asked_for_again(browser, address):
    page = browser.new_page()
    page.route("**/repsr_m4c16_x2.onnx", lambda route: route.fulfill(status=404), times=1)
    page.goto(f"{address}live/")
    page.wait_for_selector("#live-off", state="hidden")
    choose(page, encoded(PHOTO))
    expect(page.locator("#live-problem")).to_contain_text("repsr_m4c16_x2.onnx could not be loaded")
    choose(page, encoded(PHOTO))
    assert_equal(enlarged(page), python(PHOTO))
    page.close()


def test_a_page_from_a_file_says_what_to_do(browser, site, page):
    expect(page.locator("#live-off")).to_be_hidden()
    opened = browser.new_page()
    opened.goto((site / "live" / "index.html").as_uri())
    expect(opened.locator("#live-off")).to_contain_text("python -m http.server --directory site")
    opened.close()
