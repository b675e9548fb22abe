"""Renders the sample pair of `docs/sample/`: one courtyard, photographed from two places.

    python scripts/render_sample.py            # writes the pictures
    python scripts/render_sample.py --check    # renders, and compares with the pictures that are there

Needs scikit-image (`pip install tfcorr[test]`) for five photographs that are CC0 or in the public domain; the
other textures are procedural, the lettering is Pillow's own font. The brick wall is the plane z = 0, the
ground y = 0; `raycast.py` tells the rest of the conventions.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from raycast import Camera, Quad, Round, Scene, Surface, bake, develop, make_box, render, visible
from skimage import data

WIDTH, HEIGHT, SUPERSAMPLING = 640, 480, 3
CAMERAS = {
    "ground_truth": Camera((-0.3, 1.75, -5.0), (-0.05, 0.82, 0), 0.0, 880, 0.62, (1.00, 1.00, 1.00), seed=1),
    "reference": Camera((1.15, 1.95, -5.0), (-0.06, 0.84, 0), 8.0, 815, 0.70, (1.06, 1.00, 0.93), seed=2),
}


# --------------------------------------------------------------------------------------------- textures


def linear(image: np.ndarray) -> np.ndarray:
    """Display values, uint8 or in [0, 1], to linear float32."""
    image = np.asarray(image)
    scale = np.float32(1 / 255 if image.dtype == np.uint8 else 1)
    return (image.astype(np.float32) * scale) ** np.float32(2.2)


def noise(shape: tuple[int, int], cells: tuple[float, float], seed: int, octaves: int = 4) -> np.ndarray:
    """Fractal noise of mean 0 and deviation 1; the coarsest octave has `cells` (down, across) cells."""
    rng, total = np.random.default_rng(seed), np.zeros(shape, np.float32)
    for octave in range(octaves):
        size = [max(2, round(n * 2**octave)) for n in cells]
        values = rng.normal(size=size).astype(np.float32)
        total += cv2.resize(values, shape[::-1], interpolation=cv2.INTER_CUBIC) / 1.6**octave
    return (total - total.mean()) / total.std()


def tinted(grey: np.ndarray, dark: tuple, light: tuple) -> np.ndarray:
    """Grey values in [0, 1] to linear colours between two sRGB colours."""
    grey = np.clip(grey, 0, 1).astype(np.float32)[..., None]
    return linear((1 - grey) * np.float32(dark) + grey * np.float32(light))


def seamless(image: np.ndarray, margin: int = 48) -> np.ndarray:
    """Crossfades opposite edges, so that the image can be tiled."""
    for _ in range(2):
        weight = np.linspace(1, 0, margin, dtype=np.float32).reshape((-1,) + (1,) * (image.ndim - 1))
        image = image.astype(np.float32)
        image[:margin] = weight * image[-margin:] + (1 - weight) * image[:margin]
        image = np.swapaxes(image[:-margin], 0, 1)
    return image


def bricks(width: float, height: float, density: int = 480) -> np.ndarray:
    """A wall of bricks of 215 x 65 mm in running bond; sizes in metres, density in pixels per metre."""
    shape = (round(height * density), round(width * density))
    y, x = (a / density for a in np.mgrid[: shape[0], : shape[1]].astype(np.float32))
    x = x + 0.0022 * noise(shape, (height * 22, width * 22), 1, 3)
    y = y + 0.0016 * noise(shape, (height * 16, width * 16), 2, 3)
    row = np.floor(y / 0.077).astype(int)
    x = x + 0.5 * 0.227 * (row % 2) + 0.227
    column = np.floor(x / 0.227).astype(int)
    fx, fy = x % 0.227, y % 0.077
    edge = np.minimum(np.minimum(fx, 0.227 - fx), np.minimum(fy, 0.077 - fy)) - 0.0055
    face = np.clip(edge / 0.004 + 0.3, 0, 1)
    rng = np.random.default_rng(3)
    tone = rng.normal(size=(row.max() + 2, column.max() + 2))[row, column]
    burnt = rng.random((row.max() + 2, column.max() + 2))[row, column] < 0.12
    grain = noise(shape, (height * 60, width * 60), 4, 4)
    stain = noise(shape, (3, 4), 5, 5)
    brick = tinted(0.5 + 0.14 * tone + 0.10 * grain + 0.07 * stain, (0.36, 0.17, 0.13), (0.80, 0.50, 0.38))
    brick = np.where(burnt[..., None], brick * (0.45, 0.47, 0.58), brick)
    mortar = tinted(0.5 + 0.16 * grain + 0.12 * stain, (0.46, 0.43, 0.39), (0.80, 0.77, 0.71))
    relief = cv2.GaussianBlur(face + 0.10 * grain, (0, 0), 0.8)
    slope = np.roll(relief, 1, 0) - relief + 0.7 * (np.roll(relief, -1, 1) - relief)  # lit from above right
    colour = face[..., None] * brick + (1 - face[..., None]) * mortar * 0.85
    return (colour * np.clip(1 - 0.9 * slope, 0.3, 1.7)[..., None]).astype(np.float32)


def wood(dark: tuple, light: tuple, seed: int, size: tuple[int, int] = (512, 1024)) -> np.ndarray:
    """Planks along u: fine streaks, and rings that bend slowly."""
    bend = noise(size, (3, 2), seed, 3)
    rings = np.sin(np.linspace(0, 60, size[0], dtype=np.float32)[:, None] + 2.6 * bend)
    streaks = noise(size, (size[0] / 4, 6), seed + 1, 3)
    return tinted(0.5 + 0.12 * rings + 0.14 * streaks + 0.06 * bend, dark, light)


def plaid(size: int = 240, threads: int = 60) -> np.ndarray:
    """A woven tartan; every thread is `size / threads` pixels wide."""
    palette = np.array([[0.09, 0.20, 0.32], [0.70, 0.16, 0.13], [0.90, 0.84, 0.70], [0.12, 0.33, 0.24]])
    stripes = np.repeat([0, 1, 0, 2, 0, 3, 2, 3], [16, 4, 4, 2, 8, 14, 2, 10])
    y, x = np.mgrid[:size, :size] * threads // size
    over = ((x + y) // 2 % 2)[..., None]
    colour = np.where(over, palette[stripes[x]], palette[stripes[y]])
    fraction = np.stack(np.mgrid[:size, :size] * threads / size % 1)
    return (linear(colour) * (0.55 + 0.6 * np.sin(np.pi * fraction).min(0))[..., None]).astype(np.float32)


def leaves(size: int = 900, count: int = 620) -> np.ndarray:
    """Foliage with an alpha channel: what the sun shines through, above the picture."""
    rng = np.random.default_rng(11)
    alpha = np.zeros((size, size), np.uint8)
    for x, y, spread, angle in zip(*rng.random((4, count)) * [[size], [size], [1], [360]], strict=True):
        cv2.ellipse(
            alpha, (int(x), int(y)), (int(9 + 12 * spread), int(5 + 6 * spread)), angle, 0, 360, 255, -1
        )
    gaps = noise((size, size), (4, 4), 12, 3) < 0.25
    return np.dstack([np.full((size, size, 3), 0.1), alpha / 255 * gaps]).astype(np.float32)


def page(
    size: tuple[int, int], paper: tuple, lines: list[tuple], pictures: list[tuple] = (), bold: float = 0.0
) -> np.ndarray:
    """A poster of `size` (width, height) pixels.

    Args:
      size, paper: the size and the colour of the paper, 8-bit RGB.
      lines: (text, x, y, font size, colour, Pillow's anchor).
      pictures: (image, (left, top, right, bottom)).
      bold: extra weight of the lettering, relative to the font size.

    Returns:
      The texture (height, width, 3).
    """
    image = Image.new("RGB", size, paper)
    for picture, (left, top, right, bottom) in pictures:
        part = (
            Image.fromarray(picture)
            .convert("RGB")
            .resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        )
        image.paste(part, (left, top))
    draw = ImageDraw.Draw(image)
    for text, x, y, points, colour, anchor in lines:
        font = ImageFont.load_default(points)
        draw.text((x, y), text, font=font, fill=colour, anchor=anchor, stroke_width=round(bold * points))
    fibres = 1 + 0.012 * noise(size[::-1], (size[1] / 6, size[0] / 6), size[0], 2)
    return linear(np.asarray(image)) * fibres[..., None]


def eye_chart() -> np.ndarray:
    """Letters in ten sizes."""
    rows = ["E", "F P", "T O Z", "L P E D", "P E C F D", "E D F C Z P", "F E L O P Z D", "D E F P O T E C"]
    rows += ["L E F O D P C T", "F D P L T C E O", "P E Z O L C F T D"]
    lines, y = [], 30
    for i, row in enumerate(rows):
        points = max(26, round(170 * 0.80**i))
        lines.append((row, 310, y, points, (25, 25, 28), "mt"))
        lines.append((str(i + 1), 34, y + points // 3, 18, (150, 40, 40), "mm"))
        y += round(points * 0.78) + 26
    lines.append(("READ DOWN AS FAR AS YOU CAN", 310, y + 12, 26, (150, 40, 40), "mt"))
    return page((620, y + 60), (240, 236, 224), lines, bold=0.025)


def launch_poster() -> np.ndarray:
    """A photograph of a rocket with a title and small print."""
    ink, sand = (238, 226, 200), (222, 170, 90)
    lines = [
        ("TO ORBIT", 300, 40, 118, ink, "mt"),
        ("and back before the coffee is cold", 300, 146, 34, sand, "mt"),
        ("PUBLIC LECTURE", 40, 690, 40, ink, "lt"),
        ("Thursday 19:30  ·  Old Observatory", 40, 736, 32, sand, "lt"),
        ("How a first stage finds its way home.", 40, 778, 27, ink, "lt"),
        ("Doors open at seven. Bring a warm coat.", 40, 809, 27, ink, "lt"),
    ]
    return page((600, 850), (22, 30, 46), lines, [(data.rocket()[:, 40:560], (40, 205, 560, 665))])


def cat_notice() -> np.ndarray:
    """A notice with a photograph of a cat and strips to tear off."""
    ink = (30, 30, 34)
    story = ("Chelsea, two years old, loves keyboards.", "Last seen on the wall of the bakery,")
    story += ("watching a pigeon. Answers to nothing.", "If she sits on your papers, do call us.")
    lines = [("LOST CAT", 300, 30, 104, (178, 34, 30), "mt")]
    lines += [(text, 300, 490 + 36 * i, 30, ink, "mt") for i, text in enumerate(story)]
    lines += [("REWARD: ONE CAKE", 300, 640, 42, ink, "mt")]
    return page((600, 720), (244, 242, 236), lines, [(data.chelsea(), (50, 140, 550, 472))])


def cafe_board() -> np.ndarray:
    """A blackboard with a menu."""
    chalk, ochre = (226, 226, 216), (232, 190, 110)
    menu = [("Espresso", "1.80"), ("Macchiato", "2.20"), ("Flat white", "3.10"), ("Cold brew", "3.60")]
    menu += [("Mint tea", "2.40"), ("Lemonade", "2.90"), ("Plum cake", "3.20"), ("Soup of the day", "4.50")]
    lines = [("COURTYARD CAFE", 300, 30, 62, ochre, "mt")]
    for i, (what, price) in enumerate(menu):
        y = 432 + 46 * i
        lines += [(what, 40, y, 36, chalk, "lt"), (price, 560, y, 36, chalk, "rt")]
        lines += [("." * 60, 300, y + 4, 20, (120, 124, 120), "mt")] if i < 7 else []
    lines.append(("Please bring back cups and spoons.", 300, 806, 28, ochre, "mt"))
    return page((600, 850), (40, 46, 44), lines, [(data.coffee(), (60, 112, 540, 412))])


# ------------------------------------------------------------------------------------------------ scene


def hang(texture: np.ndarray, x: float, y: float, width: float, frame: np.ndarray | None, tilt: float = 0.0):
    """A picture on the brick wall, its centre at (x, y): pinned paper, or in a frame of the given texture."""
    height = width * texture.shape[0] / texture.shape[1]
    c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    along, down = np.array([c, s, 0]), np.array([s, -c, 0])
    off = 0.008 if frame is None else 0.020
    corner = np.array([x, y, -off]) - along * width / 2 - down * height / 2
    parts: list[Surface] = [Quad(texture, corner=corner, edge_u=along * width, edge_v=down * height)]
    if frame is not None:
        for side in (-1, 1):
            post = (x + side * (width / 2 + 0.014), y - height / 2 - 0.03, -0.017)
            parts += make_box(post, (0.03, height + 0.06, 0.034), frame, scale=0.5)
            rail = (x, y - 0.016 + side * (height / 2 + 0.014), -0.017)
            parts += make_box(rail, (width + 0.002, 0.032, 0.034), frame, scale=0.5)
    return parts


def bench(x: float, z: float, texture: np.ndarray) -> list[Surface]:
    """A bench 1.35 m wide of four slats on two trestles."""
    parts = []
    for i in range(4):
        parts += make_box((x, 0.42, z - 0.18 + 0.12 * i), (1.35, 0.035, 0.105), texture, shift=0.21 * i)
    for side in (-0.52, 0.52):
        parts += make_box((x + side, 0.365, z), (0.06, 0.055, 0.46), texture, shift=0.4)
        for depth in (-0.17, 0.17):
            parts += make_box((x + side, 0, z + depth), (0.06, 0.365, 0.06), texture, shift=0.7 + depth)
    return parts


def crate(x: float, y: float, z: float, turn: float, texture: np.ndarray) -> list[Surface]:
    """An open fruit crate, 0.52 x 0.30 x 0.36 m: three slats a side, posts in the corners, a floor."""
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    parts = make_box((x, y + 0.015, z), (0.49, 0.012, 0.33), texture, turn=turn)

    def add(right: float, up: float, deep: float, size: tuple, shift: float) -> None:
        centre = (x + c * right - s * deep, y + up, z + s * right + c * deep)
        parts.extend(make_box(centre, size, texture, turn=turn, shift=shift))

    for i in range(3):
        for side in (-1, 1):
            add(0, 0.01 + 0.1 * i, side * 0.174, (0.52, 0.078, 0.012), 0.13 * i + 0.3 * side)
            add(side * 0.254, 0.01 + 0.1 * i, 0, (0.012, 0.078, 0.336), 0.17 * i + 0.5 * side)
    for right in (-0.232, 0.232):
        for deep in (-0.152, 0.152):
            add(right, 0, deep, (0.03, 0.3, 0.03), right + deep)
    return parts


def topiary(
    x: float, z: float, size: float, clay: np.ndarray, green: np.ndarray, blades: np.ndarray
) -> list[Surface]:
    """A box tree in a pot: shells around a ball, of which less and less is left outwards."""
    parts = [
        Round(clay, centre=(x, 0, z), radius=0.11 * size, top_radius=0.15 * size, height=0.27 * size),
        Round(clay, centre=(x, 0.27 * size, z), radius=0.165 * size, top_radius=0.17 * size, height=0.05),
    ]
    middle = (x, 0.42 * size + 0.05, z)
    for layer in range(7):
        leaf = np.dstack([green * (0.35 + 0.09 * layer), blades > -2.2 + 0.48 * layer]).astype(np.float32)
        parts.append(Round(leaf, (3, 1.5), centre=middle, radius=(0.17 + 0.007 * layer) * size))
    return parts


def courtyard() -> Scene:
    """The whole scene."""
    gravel = tinted(seamless(data.gravel() / 255) * 1.15 - 0.06, (0.20, 0.18, 0.16), (0.93, 0.89, 0.82))
    grass = tinted(seamless(data.grass() / 255) * 1.5 - 0.2, (0.06, 0.11, 0.03), (0.66, 0.74, 0.32))
    oak = wood((0.40, 0.26, 0.15), (0.78, 0.60, 0.40), 20)
    pine = wood((0.58, 0.43, 0.26), (0.90, 0.76, 0.54), 30)
    black = wood((0.08, 0.08, 0.09), (0.16, 0.15, 0.15), 40)
    clay = tinted(0.5 + 0.2 * noise((256, 512), (10, 16), 50), (0.52, 0.24, 0.14), (0.82, 0.48, 0.32))
    peel = tinted(0.6 + 0.12 * noise((256, 512), (60, 120), 60, 2), (0.80, 0.36, 0.04), (1.00, 0.66, 0.14))
    glaze = tinted(0.6 + 0.08 * noise((128, 256), (8, 12), 70), (0.16, 0.30, 0.42), (0.44, 0.62, 0.70))
    cloth = plaid()

    wall = Quad(bricks(5.8, 2.9), corner=(-2.8, 2.9, 0), edge_u=(5.8, 0, 0), edge_v=(0, -2.9, 0))
    ground = Quad(gravel, (7, 3), corner=(-2.8, 0, 0), edge_u=(5.8, 0, 0), edge_v=(0, 0, -2.5))
    lawn: list[Surface] = []
    blades = cv2.GaussianBlur(noise((464, 464), (90, 90), 80, 2), (0, 0), 0.8)
    for layer in range(8):
        tuft = np.dstack([grass * (0.45 + 0.08 * layer), blades > -2.6 + 0.46 * layer]).astype(np.float32)
        up = 0.01 + 0.008 * layer
        lawn.append(Quad(tuft, (12, 0.7), corner=(-2.8, up, 0), edge_u=(5.8, 0, 0), edge_v=(0, 0, -0.33)))
    kerb = make_box((0.1, 0, -0.355), (5.8, 0.07, 0.045), oak)
    scene: list[list[Surface]] = [[wall], [ground], lawn, kerb]

    scene += [
        hang(eye_chart(), -1.36, 1.50, 0.60, None, 0.8),
        hang(launch_poster(), -0.58, 1.52, 0.60, black),
        hang(cat_notice(), 0.20, 1.50, 0.56, None, -1.6),
        hang(cafe_board(), 1.02, 1.48, 0.62, pine),
        hang(linear(np.dstack([data.camera()] * 3)), 1.85, 1.55, 0.50, black),
        bench(0.15, -0.70, oak),
        crate(-1.28, 0, -0.72, 14, pine),
        crate(-1.25, 0.302, -0.70, -7, pine),
    ]
    fruit = np.random.default_rng(5).random((30, 3)) * (0.40, 0.27, 1.0) + (-1.45, -0.84, 0)
    scene.append(
        [
            Round(
                np.roll(peel, 61 * i, 1),
                centre=(x, 0.47 + 0.05 * (i // 11) + 0.02 * up, z),
                radius=0.043 + 0.006 * up,
            )
            for i, (x, z, up) in enumerate(fruit)
        ]
    )
    things: list[Surface] = [
        Round(glaze, centre=(-0.20, 0.456, -0.74), radius=0.040, top_radius=0.046, height=0.10)
    ]
    for i, turn in enumerate((3, -4, 1)):
        blanket = (0.50, 0.456 + 0.036 * i, -0.70)
        things += make_box(blanket, (0.40, 0.034, 0.34), cloth, turn=turn, scale=0.19, shift=i)
    for i, (turn, cover) in enumerate(((8, clay), (-5, glaze), (14, black))):
        book = (0.05, 0.456 + 0.03 * i, -0.70)
        things += make_box(book, (0.17, 0.028, 0.24), cover, turn=turn, scale=2.0)
    scene.append(things)
    for x, size in ((1.20, 1.0), (1.62, 0.8)):
        scene.append(topiary(x, -0.75, size, clay, grass, blades))
    shade = Quad(leaves(), corner=(-0.6, 3.6, -3.2), edge_u=(3.0, 0, 0), edge_v=(0, 0, 2.2))
    return [*scene, [shade]]


# --------------------------------------------------------------------------------------------- pictures


def pictures() -> dict[str, np.ndarray]:
    """The three pictures of the sample, by name: uint8 (height, width, 3)."""
    scene = courtyard()
    bake(scene)
    views = {name: render(scene, c, WIDTH, HEIGHT, SUPERSAMPLING) for name, c in CAMERAS.items()}
    depths = [(views[name][1], camera) for name, camera in CAMERAS.items()]
    share, scale = visible(*depths[0], *depths[1])
    print(f"{100 * share:.1f} % of the input is visible in the reference; median scale there: {scale:.2f}")
    result = {name: develop(views[name][0], camera) for name, camera in CAMERAS.items()}
    small = Image.fromarray(result["ground_truth"]).resize(
        (WIDTH // 4, HEIGHT // 4), Image.Resampling.BICUBIC
    )
    return {**result, "low_res": np.asarray(small)}


def main() -> int:
    """Writes the pictures, or compares them with the files that are there."""
    parser = argparse.ArgumentParser(description="Renders the sample pair of docs/sample.")
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "docs" / "sample", metavar="DIR"
    )
    args = parser.parse_args()

    different = []
    for name, pixels in pictures().items():
        path = args.out / f"{name}.png"
        if not args.check:
            args.out.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, optimize=True)
        elif not np.array_equal(np.asarray(Image.open(path)), pixels):
            different.append(path.name)
    if different:
        print(f"differs from what the script renders: {', '.join(different)}", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
