"""Pairs of a reference and a given answer by kind, with what a grader of a competition says: S for the same, D for
different. D also stands where a grader would have to guess."""

from __future__ import annotations

SAME = r"""
numbers
7 | \color{red}{7}
7 | \textcolor{blue}{7}
7 | {\bf 7}
7 | \mathbf 7
7 | 7\\
\approx 2.7 | 2.7
2.7 | \approx 2.7
\frac{2}{3} | {2 \over 3}
\frac{2}{3} | \frac{2}{3} \approx 0.667
7 | 7.0
7 | ７
7 | ৭
7 | +7
-12 | −12
-12 | –12
-12 | - 12
1/8 | 0.125
1/8 | .125
0.125 | \frac{1}{8}
\frac{6}{8} | 3/4
\frac{6}{8} | \dfrac34
-\frac{2}{7} | \frac{-2}{7}
-\frac{2}{7} | \frac{2}{-7}
-\frac{2}{7} | -2/7
2.50 | 5/2
1,234,567 | 1234567
1,234,567 | 1{,}234{,}567
1,234,567 | 1\,234\,567
12345 | 12,\!345
3.5 \times 10^4 | 35000
3.5 \times 10^{-2} | 0.035
35000 | 3.5e4
0.000001 | 10^{-6}
0.1\overline{6} | \frac{1}{6}
0.\overline{27} | 3/11
\frac{7}{9} | 0.\overline{7}
½ | 0.5
3½ | 3.5
007 | 7
6 | |-6|
6 | \lfloor 6.9 \rfloor
6 | \gcd(12, 18)
\frac{1}{\frac{1}{3}} | 3
\frac{2^3}{5} | 1.6
mixed numbers
4\frac{1}{2} | 4.5
4\frac{1}{2} | 9/2
4 \frac12 | \frac92
4 1/2 | 4.5
-3\frac{1}{4} | -3.25
13/4 | 3\frac{1}{4}
powers, factorials and binomials
35 | \frac{7!}{3!4!}
35 | {7 \choose 3}
\frac{1}{e^2} | \frac{1}{\mathrm e^2}
2^{5000} | 4^{2500}
2^{1000000} | 4^{500000}
10^{100} | (10^{50})^2
7! | 5040
\frac{100!}{98!} | 9900
\binom{8}{3} | 56
\binom{52}{5} | 2598960
2**5 | 32
3^4 | 81
27^{\frac{2}{3}} | 9
\sqrt[3]{-8} | -2
2^{-4} | \frac{1}{16}
6^{700} | 2^{700} \cdot 3^{700}
50^{50} | 2^{50} \cdot 5^{100}
2^{n+1} | 2 \cdot 2^n
1000! | 1000!
roots and constants
3\sqrt{2} | \sqrt{18}
3\sqrt{2} | 3√2
\frac{1}{\sqrt{2}} | \frac{\sqrt{2}}{2}
\sqrt{\frac{3}{4}} | \frac{\sqrt3}{2}
3\sqrt{2} | 3*sqrt(2)
\frac{1}{\sqrt{5}-2} | \sqrt{5}+2
\sqrt{6}\cdot\sqrt{10} | 2\sqrt{15}
\sqrt[3]{54} | 3\sqrt[3]{2}
4\pi | 4π
\frac{3\pi}{2} | 1.5\pi
\frac{\pi}{3} | pi/3
e^{-1} | \frac{1}{e}
\exp(3) | e^3
\ln 4 | 2\ln 2
\log_3 9 | 2
\log_4 8 | \frac{3}{2}
\log_{10} 1000 | 3
\sin 60^\circ | \frac{\sqrt{3}}{2}
\cos\frac{2\pi}{3} | -\frac12
\tan 45^\circ | 1
3+4i | 4i+3
\frac{1+i}{1-i} | i
(1+i)^2 | 2i
\sqrt{-9} | 3i
\theta | θ
expressions
3x+6 | 3(x+2)
(x-2)(x+3) | x^2+x-6
\frac{a}{b} | a/b
\frac{a+b}{2} | \frac{a}{2}+\frac{b}{2}
x^2y | yx^2
x^{-1} | \frac{1}{x}
\frac{x^2-1}{x-1} | x+1
n(n-1)(n-2) | n^3-3n^2+2n
\sqrt{x} | x^{1/2}
k^2 | k**2
k^2 | k²
a_1+a_2 | a_2+a_1
x_{1} | x_1
-(x-y) | y-x
\frac{m(m-1)}{2} | \frac{1}{2}m(m-1)
4^n | 2^{2n}
units
9 | 9 \frac{\text{m}}{\text{s}}
40 \text{ km/h} | 40 km per hour
40 \text{ km/h} | 40\ \frac{\text{km}}{\text{h}}
25\text{ km} | 25
25\text{ km} | 25 km
25\text{ km} | 25\,\mathrm{km}
25 | 25 km
25 | 25\text{ kilometers}
25 \text{ km} | 25 \text{ kilometres}
12\text{ cm}^2 | 12 square centimeters
12\text{ cm}^2 | 12\,\text{cm}^{2}
12\text{ cm}^2 | 12 cm²
12\text{ cm}^2 | 12
12 | 12\text{ m}^3
60 \text{ mph} | 60 miles per hour
60 | 60\,\text{mi/h}
9.8 \text{ m/s}^2 | 9.8
30 | 30 students
30\text{ students} | 30
30 | 30 red balls
7 | 7 hours
7\text{ hours} | 7 h
7\text{ minutes} | 7 min
45^\circ | 45
45 | 45°
45^\circ | 45 degrees
45^{\circ} | 45\text{ degrees}
\frac{3}{2}\text{ m} | 1.5
16\pi\text{ square units} | 16\pi
5 million | 5000000
37^\circ\text{C} | 37
money and percent
35\% | 35 per cent
\$45 | 45
45 | \$45
45 | $45
45 | 45 dollars
\$45 | 45 dollars
\$45.00 | 45
\$1,250 | 1250
\$1,250 | \$1250.00
45 | €45
45 | 45 euros
€45 | 45 €
45 | £45.00
20\% | 20
20\% | 20%
20\% | 0.2
20\% | 1/5
20 | 20\%
20 | 20 percent
\frac{1}{4} | 25\%
12.5\% | 12.5 percent
choices
D | d
C | (C)
C | \text{(C)}
C | \textbf{C}
C | Option C
C | C.
C | \mathbf{(C)}
\text{(C)} | C
\textbf{(C)}\ 24 | C
\textbf{(C)}\ 24 | (C) 24
\textbf{(C)}\ 24 | 24
24 | (C) 24
ACD | A, C, D
ACD | A, C and D
A, C | C, A
B | choice B
texts
4:15 | 4:15 pm
4:15 | 4:15\text{ a.m.}
\text{no solution} | \text{There is no solution}
\text{Alice} | Alice
\text{Alice} | alice
\text{yes} | Yes
\text{Yes} | \text{yes.}
\text{odd} | odd
the circle | a circle
\text{circle} | the circle
\text{right triangle} | Right triangle
\text{isosceles} | Isosceles
\text{Tuesday} | tuesday
\text{north} | North
\text{March 5} | March 5
\text{March 5} | 5 March
\text{March 5} | March 5th
7:45 | 7{:}45
\text{7 a.m.} | 7 AM
7:30\text{ p.m.} | 7:30 PM
8 \text{ p.m.} | 8:00 p.m.
12 | twelve
forty-two | 42
\infty | ∞
\infty | \text{infinity}
-\infty | -∞
\text{undefined} | undefined
lists and sets
2, 9 | x \in \{2, 9\}
2, 9 | 2 \\ 9
1, 3, \ldots, 2n-1 | 1,3,\dots,2n-1
1, 3, 5, \ldots | \{1,3,5,...\}
\{1+i, 1-i\} | \{1-i, 1+i\}
x=4,y=1 | x=4,\ y=1
3, 8 | 8, 3
3, 8 | 3 and 8
3, 8 | \{8, 3\}
\{3, 8\} | {3, 8}
\{3, 8\} | 8, 3
\{3, 8\} | x = 3 or x = 8
3, 8 | x = 3, 8
3, 8 | x=3\text{ or }x=8
3, 8 | 3; 8
3, 8 | 3，8
\{7\} | 7
7 | \{7\}
1, 2, 3 | 3, 1, \text{ and } 2
\pm 4 | 4, -4
\pm 4 | -4 \text{ and } 4
2 \pm \sqrt{3} | 2+\sqrt{3}, 2-\sqrt{3}
\{2 \pm \sqrt{3}\} | 2 \pm \sqrt3
\frac{1}{2}, 3 | 3, 0.5
\emptyset | \varnothing
\emptyset | \{\}
\emptyset | \text{empty set}
\{1,\frac{2}{4}\} | \{0.5, 1\}
(1,4), (4,1) | (4,1), (1,4)
(1,4), (4,1) | (4,1) \text{ and } (1,4)
100, 300 | 300, 100
tuples, vectors and matrices
(4, 1) | x=4, y=1
(4, 1) | (x,y) = (4,1)
(4, 1) | \langle 4, 1 \rangle
(4, 1) | (8/2, 1)
(4, 1) | P = (4,1)
(4, 1) | \begin{pmatrix} 4 \\ 1 \end{pmatrix}
(4, 1) | \begin{cases} x=4 \\ y=1 \end{cases}
(2, \frac{\pi}{3}) | (r,\theta) = (2,\pi/3)
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \left[\begin{array}{cc}1&2\\3&4\end{array}\right]
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{bmatrix}1&2\\[2pt]3&4\end{bmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{pmatrix}1&2\cr 3&4\end{pmatrix}
(2, 5) | (2,5)
(2, 5) | (2.0, \frac{10}{2})
(2, 5) | \left( 2, 5 \right)
(2, 5) | x=2, y=5
x=2, y=5 | (2, 5)
x=2, y=5 | y=5, x=2
a=2, b=5 | a = 2 and b = 5
(1, -\frac12, 3) | (1, -0.5, 3)
\langle 1, 2 \rangle | (1, 2)
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{bmatrix} 1 \\ 2 \end{bmatrix}
\begin{pmatrix} 1 & 0 \\ 0 & 1/2 \end{pmatrix} | \begin{bmatrix} 1 & 0 \\ 0 & 0.5 \end{bmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | (1, 2)
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | [[1,2],[3,4]]
intervals and inequalities
x \ne 5 | x \in \mathbb{R}, x \neq 5
(-\infty,1] \cup [2,\infty) | (-\infty,1] \bigcup [2,\infty)
[2, 9) | [2,9)
(2, 9) | 2 < x < 9
2 < x < 9 | (2, 9)
2 \le x < 9 | [2, 9)
[2, 9) | 9 > x \geq 2
x > 4 | (4, \infty)
x > 4 | 4 < x
x \leq \frac{1}{2} | (-\infty, 0.5]
(-\infty, 0.5] | x ≤ 1/2
x \in [0, 1] | [0, 1]
(-\infty, 1) \cup (4, \infty) | x < 1 \text{ or } x > 4
(-\infty, 1) \cup (4, \infty) | (4, \infty) \cup (-\infty, 1)
(-\infty, 1) \cup (4, \infty) | (-∞,1)∪(4,∞)
(-\infty, 1) \cup (4, \infty) | (-\infty,1)U(4,\infty)
(-\infty, 1) \cup (1, \infty) | x \ne 1
(-\infty, 1) \cup (1, \infty) | \mathbb{R} \setminus \{1\}
\mathbb{R} | (-\infty, \infty)
\mathbb{R} | \text{all real numbers}
[-\sqrt{2}, \sqrt{2}] | -\sqrt2 \le x \le \sqrt2
[1, 3] \cup [2, 4] | [1, 4]
\{x \mid x > 4\} | (4, \infty)
x > 1 \text{ and } x < 5 | (1, 5)
equations
x = 6 | 6
6 | x = 6
6 | n = 6
6 | k=6
y = 3x - 2 | 3x - 2
y = 3x - 2 | y = -2 + 3x
y = 3x - 2 | 3x - y - 2 = 0
3x - y - 2 = 0 | 6x - 2y = 4
x^2 + y^2 = 9 | x^2 + y^2 - 9 = 0
x^2 + y^2 = 9 | 9 = x^2 + y^2
f(x) = x^3 - 1 | x^3 - 1
g(x) = 2x | y = 2x
g(x) = 2x | f(x) = 2x
5 | \text{The answer is } 5
12 | 3 \cdot 4 = 12
12 | m+n = 12
12 | AB = 12
12 | \angle ABC = 12
xy = 4 | 2xy = 8
\frac{x}{2} + \frac{y}{3} = 1 | 3x + 2y = 6
a + b < c | 2a + 2b < 2c
10 | 10 = 10
ratios, bases and congruences
1011_2 | 1011_{(2)}
1011_2 | (1011)_2
1011_2 | 1011\text{ (base 2)}
3:4 | 3 : 4
3:4 | 6:8
1:2:3 | 2:4:6
3:4 | 3\text{ to }4
1011_2 | 1011_{2}
1011_2 | 1011_{\text{two}}
2A_{16} | 2a_{16}
302_5 | 302 \text{ base } 5
x \equiv 3 \pmod{7} | x \equiv 10 \pmod 7
x \equiv 3 \pmod{7} | x≡3 (mod 7)
x \equiv 3 \pmod{7} | 3 \pmod{7}
"""

DIFFERENT = r"""
numbers
7 | \approx 7
7 | \text{about }7
7 | 7...
\frac{2}{3} | \approx \frac{2}{3}
7 | 7 \approx 8
7 | 7\\8
7 | 8
7 | -7
7 | 7.0000001
1/3 | 0.3333
1/3 | 0.333333333333333333333333
0.3333 | 1/3
0.67 | 2/3
\frac{22}{7} | \pi
3.14 | \pi
\pi | 3.14
\frac{1}{8} | 0.12
123 | 12 3
123 | 1 2 3
123 | 1, 2, 3
12 | 1 2
12345 | 12 345
1,234 | 1, 234
1000 | 1.000
-3 | 3
5 | 1/5
5 | 5/0
5 | \frac{0}{0}
0 | 10^{-30}
1 | 1 - 10^{-30}
1 | 0.999999999999999999
1 | 0.99999
987654321987654321 | 987654321987654322
0.\overline{3} | 0.3
6 | 6!
6 | 3!!
5 | 5^2
1 | 0!+1
5 | five hundred
10 | 1e2
5 | 5...
0.12 | 0.12\ldots
12 | 1/2
100 | 10^{20}
mixed numbers
2 | 2 1/2
2 | 2\frac{1}{2}
5/2 | 2 \cdot \frac{1}{2}
\frac{3}{2} | 3\frac{1}{2}
-3\frac{1}{4} | -2.75
1 | 2\frac{1}{2}
7/3 | 1 7/3
4 | 1 3
powers, factorials and binomials
2^{1000} | 2^{1001}
2^{1000} | 2^{999}
2^{1000000} | 2^{1000001}
2^{1000000} | 2^{1000000}+1
10^{10^{10}} | 10^{10^{11}}
7^{7^{7^{7}}} | 1
99999999! | 99999998!
100! | 101!
\frac{1}{500!} | \frac{1}{501!}
\frac{1}{2^{60}} | 0
1 + \frac{1}{2^{70}} | 1
\frac{3^{500}+1}{3^{500}} | 1
1 - \frac{1}{10^{40}} | 1
32 | 2*5
25 | 2**5
25 | 2^5
x^5 | x5
2^{n} | 2^{n+1}
2^n | n^2
\binom{8}{3} | \binom{8}{4}
\binom{8}{3} | \frac{8}{3}
roots and constants
\sqrt{2} | 1.41421356237309504880
\sqrt{2} | 1.414
2\sqrt{3} | \sqrt{6}
2\sqrt{3} | 3\sqrt{2}
\sqrt{2} | \sqrt{3}
\sqrt{2} | \sqrt[3]{2}
3 | 3\sqrt{2}
3 | \sqrt{3}
100001\sqrt{3} | 100000\sqrt{3}
e | 2.718281828459045
2\pi | 6.2832
\pi | 3
\sqrt{2}+10^{-20} | \sqrt{2}
\pi + 10^{-40} | \pi
\frac{\pi}{4} | \frac{\pi}{2}
\ln 2 | 0.693147
\ln 2 | \ln 3
\log_2 3 | \log_3 2
\log 2 | \ln 2
3+4i | 3-4i
5 | 3+4i
4 | 4i
i | -i
e^{i} | e
\sin 1 | \sin 1^\circ
1 - \frac{1}{e} | 1 - e
expressions
x+1 | x-1
x+1 | y+1
x^2 | x2
x^2 | 2x
x | 2x
5 | 5x
5x | 5
5 | x
2k+1 | 2k-1
x^2+1 | (x+1)^2
\frac{1}{x+1} | \frac{1}{x}+1
\sqrt{x^2} | x
\frac{n(n+1)}{2} | \frac{n(n-1)}{2}
a_1 | a_2
ab | a+b
A\to C | C \to A
P \Rightarrow Q | Q \Rightarrow P
\triangle PQR | \triangle XYZ
\overline{AB} | \overline{CD}
1, 3, 5, \ldots | 2, 4, 6, \ldots
2, 4, \ldots, 2n | 1, 2, \ldots, n
units
25\text{ km} | 25\text{ m}
25\text{ km} | 25 miles
25\text{ km} | 26
12\text{ cm}^2 | 12\text{ cm}
12\text{ cm}^2 | 12\text{ cm}^3
12\text{ cm}^2 | 12\text{ m}^2
60\text{ mph} | 60\text{ km/h}
30\text{ students} | 30 teachers
7\text{ hours} | 7 minutes
7 | 5 hours
45^\circ | 45\text{ radians}
45^\circ | 54
16\pi\text{ cm}^2 | 16\text{ cm}^2
5 | 5 million
5 | 5 thousand
10 | ten thousand
30 | 30 or so
30 | 30 less than x
30 | 30 minus 2
30 | 30 squared
5 | 5 eighths
0.3 | 0.3 repeating
5 | 5 below zero
5 | 5 hundreds
5 | 5n
5 | 5N
30 | 30 and 40
30 | not 30
money and percent
\$45 | €45
\$45 | 45 pounds
\$45 | \$54
\$45 | 45 cents
45 | \$4.50
20\% | 2
20\% | 0.02
20\% | 0.20\%
0.2 | 0.2\%
1 | 1\%
choices
D | b
C | D
C | (D)
C | CD
C | A, C
C | ABC
CD | C
\textbf{(C)}\ 24 | D
\textbf{(C)}\ 24 | (D) 24
\textbf{(C)}\ 24 | (C) 25
C | (C), (D)
C | (C) or (D)
C | Option C or D
C | C) or D)
C | A) 5. C) 6
C | (C) and (D)
C | 24
C | Option B
24 | (C) 25
C | (C), (D)
C | (C) or (D)
C | Option C or D
C | C) or D)
C | A) 5. C) 6
C | (C) and (D)
A, C | A, B
texts
4:15 | 4:16 pm
\text{Alice} | Bob
\text{yes} | no
\text{odd} | even
\text{north} | south
\text{March 5} | March 6
\text{March 5} | May 5
\text{right triangle} | triangle
5 | \text{none}
0 | \text{none}
0 | \text{no}
1 | \text{yes}
1 | True
0 | False
5 | nan
5 | \text{undefined}
5 | ?
5 | \ldots
5 | unknown
5 | x
7:45 | 7:54
7:45 | 745
7:30\text{ p.m.} | 7:30 a.m.
8\text{ p.m.} | 9 pm
9:00 | 9
6:30 | 1:5
\infty | -\infty
\infty | 10^{100}
-\infty | \infty
0 | \infty
0 | 0 \cdot \infty
lists and sets
0, 1, 2 | 0, 1, 2, ...
1, 3, 5, \ldots | 1, 3, 7, \ldots
1, 3, 5, \ldots | 3, 1, 5, \ldots
\emptyset | \{\emptyset\}
2, 9 | x \in \{2, 8\}
3, 8 | 3
3, 8 | 3, 8, 9
3, 8 | 3, 9
3, 8 | 38
3 | 3, 8
3 | 3 or 8
3 | x = 3 or x = 8
3 | 8, 3
3 | \{1, 2, 3\}
3 | 1, 2, 3, 4, 5
\pm 4 | 4
4 | \pm 4
2 \pm \sqrt{3} | 2 + \sqrt{3}
\emptyset | 0
\emptyset | \{0\}
0 | \emptyset
\{1, 2\} | \{1, 2, 2, 3\}
3, 3, 8 | 3, 8, 8
(1,4), (4,1) | (1,4)
(1,4), (4,1) | (1,4), (4,2)
tuples, vectors and matrices
(4, 1) | (1, 4)
(4, 1) | x=1, y=4
(4, 1) | (y,x) = (4,1)
(4, 1) | [4, 1)
(2, 5) | (5, 2)
(2, 5) | 2
(2, 5) | 5, 2
(2, 5) | [2, 5]
(2, 5) | (2, 5, 0)
(2, 5) | \{2, 5\}
(2, 5) | x=5, y=2
x=2, y=5 | x=5, y=2
x=2, y=5 | (5, 2)
x=2, y=5 | 2
x=2 | y=2
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 2 \\ 1 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 1 & 2 \end{pmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | (1, 2, 3, 4)
intervals and inequalities
[2, 9) | (2, 9)
[2, 9) | [2, 9]
[2, 9) | (2, 9]
[2, 9] | [2, 8]
x > 4 | 4
4 | x > 4
4 | x \ge 4
4 | \ne 4
4 | \le 4
x > 4 | x \ge 4
x > 4 | x < 4
x > 4 | y > 4
x \ne 4 | x > 4
2 < x < 9 | 2 < x
2 < x < 9 | (2, 9]
(-\infty, 1) \cup (4, \infty) | (-\infty, 1)
(-\infty, 1) \cup (4, \infty) | (1, 4)
5 | (0, 10)
5 | [5, 6]
5 | \mathbb{R}
5 | (-\infty, \infty)
5 | x \in \mathbb{R}
\mathbb{R} | \mathbb{Z}
\mathbb{R} | (-\infty, \infty]
\mathbb{Q} | \mathbb{R}
x > 1 | x > 1 \text{ or } x < 0
a + b < c | a + b > c
a + b < c | -a - b < -c
equations
5 | 5 \in \{5\}
\mathbb{R} | 5 \in \mathbb{R}
6 | x = 7
6 | x = y
0 | x = y
0 | 0 = 1
6 | 2 + 3 = 6
6 | x = 5 = 6
6 | 6 = x + y = 7
6 | 2x = 6
6 | x^2 = 6
y = 3x - 2 | y = 3x + 2
y = 3x - 2 | 3x + 2
3x - y - 2 = 0 | 3x + y - 2 = 0
x^2 + y^2 = 9 | x^2 + y^2 = 3
x^2 + y^2 = 9 | 9
x + y = 5 | 5
x = 2 | x^2 = 2x
3x - y - 2 = 0 | 0 = 0
f(x) = x^3 | x^2
f(2) = 3 | f(3) = 3
P(A) = \frac{1}{2} | P(B) = \frac{1}{2}
0 | \sin 2\pi/3
ratios, bases and congruences
3:4 | 4:3
1:2:3 | 1:2:4
1:2:3 | 1:2
1011_2 | 1011_3
1011_2 | 1010_2
1011_2 | 11
1011_2 | 1011
11 | 1011_2
x \equiv 3 \pmod{7} | x \equiv 4 \pmod{7}
x \equiv 3 \pmod{7} | x \equiv 3 \pmod{8}
x \equiv 3 \pmod{7} | 3
x \equiv 3 \pmod{7} | y \equiv 3 \pmod{7}
"""


def rows(table: str) -> list[tuple[str, str, str]]:
    """Kind, reference and given answer of each line."""
    found = []
    kind = ""
    for line in table.strip().splitlines():
        reference, bar, given = line.partition(" | ")
        if bar:
            found.append((kind, reference, given))
        else:
            kind = line
    return found
